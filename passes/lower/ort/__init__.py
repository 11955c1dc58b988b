"""Lowering to ONNX Runtime."""
