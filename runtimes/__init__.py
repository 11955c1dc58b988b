"""Decoding: the loop, sessions (one file per backend), caches, drafters and acceptance rules."""
