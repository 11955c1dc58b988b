"""Functions, old opsets and ONNX Runtime's own operators, as standard operators."""
