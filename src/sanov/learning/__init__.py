"""The one training loop, and the procedures that pairs of systems share."""
