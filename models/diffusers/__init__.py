"""Folders as diffusers writes them: a pipeline's, and those of its components."""
