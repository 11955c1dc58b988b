"""The driver: checkpoint in, proven bundle out."""
