"""Triton kernels. Only these files import triton, and only `compile` and `launch` import them."""
