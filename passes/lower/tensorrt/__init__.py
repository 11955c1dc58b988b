"""Lowering to TensorRT."""
