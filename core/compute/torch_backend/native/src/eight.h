// A head of a key or a value as whole numbers of eight bits, behind the number that they are times of.
#pragma once

#include "vector.h"

typedef int8_t Eights __attribute__((vector_size(16)));

inline int64_t eight_bytes(int64_t dim) { return dim + int64_t(sizeof(float)); }

template <class In> inline void to_eight(const In *from, int64_t dim, int8_t *to) { // dim: a multiple of LANES
    Floats most = {};
    for (int64_t d = 0; d < dim; d += LANES) {
        Floats values = load(from + d);
        most = largest(most, largest(values, -values));
    }
    float scale = largest(most) / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    memcpy(to, &scale, sizeof scale);
    to += sizeof scale;
    Floats magic = filled(12582912.0f); // 1.5 * 2^23: adding it rounds to a whole number
    for (int64_t d = 0; d < dim; d += LANES) {
        Ints whole = (Ints)(load(from + d) * inverse + magic) - 0x4b400000;
        Eights eights = __builtin_convertvector(whole, Eights);
        memcpy(to + d, &eights, sizeof eights);
    }
}

template <class T> inline void from_eight(const int8_t *from, int64_t dim, T *to) {
    float scale;
    memcpy(&scale, from, sizeof scale);
    from += sizeof scale;
    for (int64_t d = 0; d < dim; d += LANES) {
        Eights eights;
        memcpy(&eights, from + d, sizeof eights);
        store(to + d, __builtin_convertvector(__builtin_convertvector(eights, Ints), Floats) * scale);
    }
}
