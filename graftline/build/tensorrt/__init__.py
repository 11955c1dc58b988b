"""Building TensorRT engines from lowered graphs."""
