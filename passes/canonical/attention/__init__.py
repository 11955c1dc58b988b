"""Attention in any spelling."""
