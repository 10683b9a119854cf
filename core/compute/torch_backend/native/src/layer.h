// What Python hands over once for a KV cache and once for a step. Every field is eight bytes: an array of int64 there.
#pragma once

#include "linear.h"
#include "team.h"

#include <cstdint>

struct Shape {
    int64_t bfloat16; // hidden states, keys and values: bfloat16, or else float32
    int64_t heads, kv_heads, dim, page_size;
    int64_t interleaved; // pairs that turn together: neighbours, or half a head apart
    const float *cosines, *sines; // [positions, dim / 2]
    int64_t eight; // keys and values are held in eight bits (eight.h)
    int64_t whole; // keys are never parted among tasks: a query is computed alike with few beside it and with many
};

struct Step {
    int64_t tokens, sequences;
    const int32_t *positions;    // [tokens]
    const int64_t *slots;        // [tokens]
    const int32_t *query_starts; // [sequences + 1]
    const int32_t *lengths;      // [sequences]: keys, those of this step included
    const int32_t *pages;        // [sequences, pages_apart]
    int64_t pages_apart;
};

struct Layer {
    const Linear *qkv, *o, *gate_up, *down;
    const void *input_norm, *post_norm;
    double eps;
};

EXPORT void attention(const Shape *shape, const Step *step, const void *q, const void *keys, const void *values, void *out);
