"""From canonical operators to those that a backend has."""
