// What every native projection has, whatever its format: the calls in layer.cpp are made around it.
#pragma once

#include <cstdint>

struct Linear {
    // One token's activations x [in_features], in the form that `rows` multiplies by: rounded, or quantized with its own scale.
    void (*prepare)(const Linear *, const float *x, void *prepared);
    // out[token * stride + row - first] for rows first..last of W and every token of `prepared`, on the calling thread alone.
    // A token's results hang on no other token.
    void (*rows)(const Linear *, const void *prepared, int64_t tokens, int64_t first, int64_t last, float *out, int64_t stride);
    int64_t out_features, in_features;
    int64_t prepared_bytes; // of one token, a multiple of 64
    int64_t block;          // `first` is a multiple of it, and `last` unless it is out_features
};
