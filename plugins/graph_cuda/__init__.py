"""CUDA graphs: steps of fixed shapes are recorded once and launched again with other contents."""
