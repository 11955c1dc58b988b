"""Decoding: the scheduler, sessions (one file per backend), caches, drafters, acceptance rules."""
