"""Sessions on ONNX Runtime."""
