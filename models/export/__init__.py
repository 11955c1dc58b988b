"""Models of transformers as graphs; and graphs of their repeated blocks."""
