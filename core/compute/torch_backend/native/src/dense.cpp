// Weights of bfloat16, in panels of rows that lie side by side: [panels, pairs of inputs, PANEL rows, 2]. A product reads them in
// the order they lie in, which is what memory gives the most for, and sums each row's pairs in their order, whatever the number
// of tokens. A row of the matrix can be had back: a tied head is the embedding too.
#include "linear.h"
#include "team.h"
#include "vector.h"

#include <cstdlib>

namespace {

struct Dense : Linear {
    const uint32_t *pairs;

    int64_t panel_pairs() const { return (in_features + 1) / 2; }
};

constexpr int64_t PANEL = 2 * LANES;

// Vectors are a register wide: of wider ones the compiler would keep the sums in memory.
#if defined(__AVX512F__)
constexpr int64_t WIDTH = 16;
constexpr int TOKENS = 12; // multiplied at a time: as many as the registers hold sums for
constexpr int SOME = 2;    // vectors of a panel at a time
#elif defined(__AVX__)
constexpr int64_t WIDTH = 8;
constexpr int TOKENS = 5;
constexpr int SOME = 2;
#else
constexpr int64_t WIDTH = 4;
constexpr int TOKENS = 5;
constexpr int SOME = 4;
#endif
constexpr int ALL = PANEL / WIDTH;
constexpr int FEW = 2; // tokens by which all vectors of a panel can be multiplied at a time
typedef float Sums __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t Bits __attribute__((vector_size(WIDTH * 4)));

#if defined(__AVX512BF16__)
typedef uint32_t Prepared; // two activations

inline void pair_up(const bf16 (&line)[LANES], Prepared *to) { memcpy(to, line, sizeof line); }

template <int M, int V> inline void add(Sums (&total)[M][V], const uint32_t *panel, const Prepared *x, int64_t apart) {
    __m512bh row[V];
    for (int v = 0; v < V; ++v) row[v] = (__m512bh)_mm512_loadu_si512(panel + v * WIDTH);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v)
            total[m][v] = (Sums)_mm512_dpbf16_ps((__m512)total[m][v], row[v], (__m512bh)_mm512_set1_epi32(int(x[m * apart])));
}
#else
struct Prepared { // two activations, widened once for all rows
    float even, odd;
};

inline void pair_up(const bf16 (&line)[LANES], Prepared *to) {
    for (int64_t each = 0; each < LANES / 2; ++each) to[each] = {widened(line[2 * each]), widened(line[2 * each + 1])};
}

constexpr int64_t AHEAD = 16; // pairs asked for early: beside the work for several tokens the memory would be left waiting

template <int M, int V> inline void add(Sums (&total)[M][V], const uint32_t *panel, const Prepared *x, int64_t apart) {
    if (M > 1)
        for (int64_t line = 0; line < PANEL; line += 16) __builtin_prefetch(panel + AHEAD * PANEL + line);
    for (int odd = 0; odd < 2; ++odd) { // one after the other: together they do not fit the registers
        Sums row[V];
        for (int v = 0; v < V; ++v) {
            Bits pair;
            memcpy(&pair, panel + v * WIDTH, sizeof pair);
            row[v] = (Sums)(odd ? pair & 0xffff0000u : pair << 16);
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            float token = odd ? x[m * apart].odd : x[m * apart].even;
            for (int v = 0; v < V; ++v) total[m][v] += row[v] * token;
        }
    }
}
#endif

template <int M, int V>
void tile(const uint32_t *panel, int64_t pairs, const Prepared *x, int64_t apart, float *out, int64_t stride) {
    Sums total[M][V];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) total[m][v] = Sums{};
    for (int64_t pair = 0; pair < pairs; ++pair) add<M, V>(total, panel + pair * PANEL, x + pair, apart);
    for (int m = 0; m < M; ++m) memcpy(out + m * stride, total[m], sizeof total[m]);
}

template <int M>
void by_panel(const uint32_t *panel, int64_t pairs, const Prepared *x, int64_t apart, float *out, int64_t stride) {
    constexpr int V = M <= FEW ? ALL : SOME;
    for (int64_t row = 0; row < PANEL; row += V * WIDTH) tile<M, V>(panel + row, pairs, x, apart, out + row, stride);
}

using Tile = void (*)(const uint32_t *, int64_t, const Prepared *, int64_t, float *, int64_t);

template <int M = TOKENS> Tile of_tokens(int64_t tokens) {
    if constexpr (M > 1)
        if (tokens < M) return of_tokens<M - 1>(tokens);
    return by_panel<M>;
}

void rows(const Linear *linear, const void *prepared, int64_t tokens, int64_t first, int64_t last, float *out, int64_t stride) {
    const Dense &dense = static_cast<const Dense &>(*linear);
    const Prepared *x = static_cast<const Prepared *>(prepared);
    int64_t pairs = dense.panel_pairs(), apart = linear->prepared_bytes / sizeof(Prepared), tiles = (tokens + TOKENS - 1) / TOKENS;
    for (int64_t row = first; row < last; row += PANEL) {
        const uint32_t *panel = dense.pairs + row * pairs;
        // Tiles that are as alike as can be.
        for (int64_t number = 0; number < tiles; ++number) {
            int64_t token = tokens * number / tiles, own = tokens * (number + 1) / tiles - token;
            const Prepared *from = x + token * apart;
            float *to = out + token * stride + row - first;
            if (last - row >= PANEL) {
                of_tokens(own)(panel, pairs, from, apart, to, stride);
                continue;
            }
            float whole[TOKENS * PANEL];
            of_tokens(own)(panel, pairs, from, apart, whole, PANEL);
            for (int64_t m = 0; m < own; ++m) memcpy(to + m * stride, whole + m * PANEL, (last - row) * 4);
        }
    }
}

void prepare(const Linear *linear, const float *x, void *prepared) {
    Prepared *to = static_cast<Prepared *>(prepared); // a multiple of 64 bytes, which is room for whole lines
    for (int64_t k = 0; k < linear->in_features; k += LANES, to += LANES / 2) {
        bf16 line[LANES] = {};
        if (k + LANES <= linear->in_features) store(line, load(x + k));
        else
            for (int64_t each = 0; k + each < linear->in_features; ++each) narrow(line + each, x[k + each]);
        pair_up(line, to);
    }
}

inline void copy(const bf16 *from, int64_t number, bf16 *to) { memcpy(to, from, number * 2); }
inline void copy(const float *from, int64_t number, bf16 *to) {
    int64_t k = 0;
    for (; k + LANES <= number; k += LANES) store(to + k, load(from + k));
    for (; k < number; ++k) narrow(to + k, from[k]);
}

template <class T> void arrange(const Linear *linear, const T *from, int64_t start, int64_t end, uint32_t *to) {
    constexpr int64_t AT_A_TIME = 16; // pairs: a line of each row
    int64_t width = linear->in_features, pairs = (width + 1) / 2;
    team::blocks(end - start, PANEL, [&](int64_t first, int64_t last) {
        uint32_t *panel = to + (start + first) * pairs;
        if (last - first < PANEL) memset(panel, 0, pairs * PANEL * 4);
        for (int64_t pair = 0; pair < pairs; pair += AT_A_TIME) {
            int64_t number = pair + AT_A_TIME < pairs ? AT_A_TIME : pairs - pair;
            for (int64_t row = first; row < last; ++row) {
                bf16 line[2 * AT_A_TIME];
                if (2 * (pair + number) > width) line[2 * number - 1] = bf16{0};
                copy(from + row * width + 2 * pair, 2 * (pair + number) > width ? width - 2 * pair : 2 * number, line);
                for (int64_t each = 0; each < number; ++each)
                    memcpy(panel + (pair + each) * PANEL + row - first, line + 2 * each, 4);
            }
        }
    });
}

} // namespace

EXPORT int64_t dense_panel() { return PANEL; }

// `pairs`: room for [panels, pairs, PANEL], filled by dense_arrange.
EXPORT Linear *dense_new(const uint32_t *pairs, int64_t out_features, int64_t in_features) {
    auto *linear = static_cast<Dense *>(calloc(1, sizeof(Dense)));
    if (!linear) return nullptr;
    linear->prepare = prepare;
    linear->rows = rows;
    linear->out_features = out_features;
    linear->in_features = in_features;
    int64_t lines = ((in_features + 1) / 2 * int64_t(sizeof(Prepared)) + 63) / 64;
    // An odd number: tokens that lie a multiple of 4096 bytes apart would drive each other from the first cache.
    linear->prepared_bytes = (lines | 1) * 64;
    linear->block = PANEL;
    linear->pairs = pairs;
    return linear;
}

EXPORT void linear_delete(Linear *linear) { free(linear); }

// Lays out rows first..last, which fill panels but for the matrix's last, from bfloat16 or float32 [last - first, in].
EXPORT void dense_arrange(const Linear *linear, int64_t bfloat16, const void *from, int64_t first, int64_t last, uint32_t *to) {
    if (bfloat16) arrange(linear, static_cast<const bf16 *>(from), first, last, to);
    else arrange(linear, static_cast<const float *>(from), first, last, to);
}

// Rows of the matrix as they were: to [number, in].
EXPORT void dense_look_up(const Linear *linear, const int32_t *ids, int64_t number, bf16 *to) {
    const Dense &dense = static_cast<const Dense &>(*linear);
    int64_t width = linear->in_features, pairs = dense.panel_pairs();
    for (int64_t each = 0; each < number; ++each, to += width) {
        const uint32_t *from = dense.pairs + ids[each] / PANEL * PANEL * pairs + ids[each] % PANEL;
        for (int64_t k = 0; k < width; ++k) to[k].bits = uint16_t(from[k / 2 * PANEL] >> k % 2 * 16);
    }
}
