"""Networks: forward passes and sampling only."""
