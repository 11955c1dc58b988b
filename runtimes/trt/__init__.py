"""Sessions on TensorRT and TensorRT-RTX."""
