"""PaddlePaddle: the same operations as the torch backend's, on a CPU in float32 and on a CUDA device."""
