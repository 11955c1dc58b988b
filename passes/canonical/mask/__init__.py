"""Masks and biases in any spelling: what they mean, or their formula."""
