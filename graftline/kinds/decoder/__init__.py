"""Causal decoders: tokens in, logits of the next token out."""
