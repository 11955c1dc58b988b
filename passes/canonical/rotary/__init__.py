"""Rotary embeddings in any spelling."""
