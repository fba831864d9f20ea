"""Reinforcement learning guidance: mix a generator with its tuned version while it samples, by one number w."""
