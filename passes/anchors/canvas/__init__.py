"""Masked generators: known by their ends, and where positions stand in every value of them."""
