// Sixteen floats at a time, written once: the compiler makes AVX-512, two AVX2 halves or NEON quarters of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

constexpr int64_t LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct bf16 {
    uint16_t bits;
};

inline Floats load(const float *from) {
    Floats out;
    memcpy(&out, from, sizeof out);
    return out;
}

inline Floats load(const bf16 *from) {
    Halves bits;
    memcpy(&bits, from, sizeof bits);
    return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

inline void store(float *to, Floats values) { memcpy(to, &values, sizeof values); }

inline Halves rounded(Floats values) { // to the nearest bfloat16, ties to even; a NaN stays one
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
    Words bits = (Words)values;
    Words nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words nan = (bits >> 16) | 0x40;
    Words is_nan = (Words)(values != values);
    return __builtin_convertvector((nearest & ~is_nan) | (nan & is_nan), Halves);
#endif
}

inline void store(bf16 *to, Floats values) {
    Halves bits = rounded(values);
    memcpy(to, &bits, sizeof bits);
}

inline float widened(float value) { return value; }

inline float widened(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

inline void narrow(float *to, float value) { *to = value; }

inline void narrow(bf16 *to, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    to->bits = value != value ? uint16_t((bits >> 16) | 0x40) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Floats filled(float value) { return Floats{} + value; }

inline float sum(Floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)values);
#else
    float parts[LANES], total = 0;
    store(parts, values);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
    total = parts[0];
    return total;
#endif
}

// The sums of four vectors, each added up in the same order whatever the others are.
inline void sums_of_four(const Floats *of, float *to) {
#if defined(__AVX512F__)
    __m512 a = (__m512)of[0], b = (__m512)of[1], c = (__m512)of[2], d = (__m512)of[3];
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 four = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(four), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(four), 1)));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int each = 0; each < 4; ++each) to[each] = sum(of[each]);
#endif
}

inline Floats largest(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    Words first = (Words)(a > b);
    return (Floats)(((Words)a & first) | ((Words)b & ~first));
#endif
}

inline float largest(Floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)values);
#else
    float parts[LANES];
    store(parts, values);
    for (int lane = 1; lane < LANES; ++lane) parts[0] = parts[lane] > parts[0] ? parts[lane] : parts[0];
    return parts[0];
#endif
}

// e to the x, to two units in the last place; 0 below -87, and at most e to the 88.
inline Floats exponential(Floats x) {
    const Floats most = filled(88.0f), least = filled(-87.0f);
    Ints vanishes = x < least;
    x = -largest(-x, -most);
    x = largest(x, least);
    Floats scaled = x * 1.44269504088896341f;
    Floats magic = filled(12582912.0f); // 1.5 * 2^23: adding it rounds to a whole number
    Floats shifted = scaled + magic;
    Floats whole = shifted - magic;
    Floats rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Floats p = filled(1.9875691500e-4f);
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * (rest * rest) + rest + 1.0f;
    Words power = ((Words)shifted - 0x4b400000u + 127u) << 23;
    return (Floats)((Words)(p * (Floats)power) & ~(Words)vanishes);
}
