"""Normalisations in any spelling."""
