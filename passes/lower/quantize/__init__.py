"""Matrices as 4 or 8 bit integers."""
