"""PyTorch: reference operations for CPU and CUDA, and the fast paths beside them."""
