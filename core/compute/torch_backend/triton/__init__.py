"""CUDA: the operations as fused Triton kernels. Plain torch, ``torch_backend.backend``, is the twin of each."""
