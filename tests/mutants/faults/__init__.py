"""Faults made on purpose, one small object each; `TABLE` lists them all."""
