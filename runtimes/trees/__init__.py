"""Shapes of trees: published, learned from acceptances, dynamic, and best for measured costs."""
