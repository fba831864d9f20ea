r"""NOLA: fine-tunes of a few thousand numbers, as combinations of random low-rank bases.

Reference: koohpayegani2024nola.
"""
