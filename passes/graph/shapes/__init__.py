"""Concrete shapes of every value at a choice of sizes."""
