// Sixteen sums of four products of bytes at a time, where a machine has instructions for it: in one register or in two.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define LANES_IN "avx512 vnni"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__AVXVNNI__)
#define LANES_IN "avx vnni"
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES_IN "avx2"
#endif

#ifdef LANES_IN
#include <immintrin.h>

namespace lanes {

constexpr int64_t LANES = 16;

#if defined(__AVX512VNNI__)

constexpr int ROWS = 6;        // of activations multiplied at a time: as many as the registers hold
constexpr int PAIRED_ROWS = 8; // where two of them are summed together
constexpr int TILES = 2;       // of sixteen outputs each

using Codes = __m512i; // unsigned bytes, four to a lane
using Ints = __m512i;
using Floats = __m512;

inline Codes load(const uint8_t *from) { return _mm512_load_si512(from); }
inline Codes low_halves(Codes c) { return _mm512_and_si512(c, _mm512_set1_epi8(15)); }
inline Codes high_halves(Codes c) { return low_halves((Codes)((__v32hu)c >> 4)); }
inline Ints ints(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints dot(Ints sum, Codes c, int32_t four) { return _mm512_dpbusd_epi32(sum, c, ints(four)); }
inline Ints dot_small(Ints sum, Codes c, int32_t four) { return dot(sum, c, four); } // of codes below 16
inline Ints number(Ints first, Ints second) { return (Ints)(((__v16si)first << 8) + (__v16si)second); }
inline Floats floats(float x) { return _mm512_set1_ps(x); }
inline Floats floats(Ints x) { return (Floats) __builtin_convertvector((__v16si)x, __v16sf); }
inline Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
inline Floats load_bf16(const uint16_t *from) {
    const __v16hu bits = (__v16hu)_mm256_loadu_si256((const __m256i *)from);
    return (Floats)(__builtin_convertvector(bits, __v16su) << 16);
}
inline Floats mul(Floats a, Floats b) { return a * b; }
inline Floats mul_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline void store(float *to, Floats x) { _mm512_storeu_ps(to, x); }

#else

constexpr int ROWS = 3;
constexpr int PAIRED_ROWS = 4;
constexpr int TILES = 1;

struct Codes {
    __m256i a, b;
};
struct Ints {
    __m256i a, b;
};
struct Floats {
    __m256 a, b;
};

inline __m256i low_half(__m256i c) { return _mm256_and_si256(c, _mm256_set1_epi8(15)); }
inline __m256i high_half(__m256i c) { return low_half(_mm256_srli_epi16(c, 4)); }

#if defined(__AVXVNNI__)
inline __m256i sums(__m256i sum, __m256i c, __m256i four) { return _mm256_dpbusd_avx_epi32(sum, c, four); }
inline __m256i small_sums(__m256i sum, __m256i c, __m256i four) { return sums(sum, c, four); }
#else
// Pairs are summed in sixteen bits. Halves of codes leave room for that, whole ones would not.
inline __m256i times(__m256i small, __m256i four, int16_t weight) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(small, four), _mm256_set1_epi16(weight));
}
inline __m256i small_sums(__m256i sum, __m256i c, __m256i four) { return _mm256_add_epi32(sum, times(c, four, 1)); }
inline __m256i sums(__m256i sum, __m256i c, __m256i four) {
    return _mm256_add_epi32(small_sums(sum, low_half(c), four), times(high_half(c), four, 16));
}
#endif

inline Codes load(const uint8_t *from) {
    return {_mm256_load_si256((const __m256i *)from), _mm256_load_si256((const __m256i *)(from + 32))};
}
inline Codes low_halves(Codes c) { return {low_half(c.a), low_half(c.b)}; }
inline Codes high_halves(Codes c) { return {high_half(c.a), high_half(c.b)}; }
inline Ints ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints dot(Ints sum, Codes c, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    return {sums(sum.a, c.a, x), sums(sum.b, c.b, x)};
}
inline Ints dot_small(Ints sum, Codes c, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    return {small_sums(sum.a, c.a, x), small_sums(sum.b, c.b, x)};
}
inline __m256i number(__m256i first, __m256i second) { return _mm256_add_epi32(_mm256_slli_epi32(first, 8), second); }
inline Ints number(Ints first, Ints second) { return {number(first.a, second.a), number(first.b, second.b)}; }
inline Floats floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Floats load_floats(const float *from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline __m256 load_eight(const uint16_t *from) {
    const __m128i bits = _mm_loadu_si128((const __m128i *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Floats load_bf16(const uint16_t *from) { return {load_eight(from), load_eight(from + 8)}; }
inline Floats mul(Floats x, Floats y) { return {x.a * y.a, x.b * y.b}; }
inline Floats mul_add(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline void store(float *to, Floats x) {
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
}

#endif

} // namespace lanes

#endif
