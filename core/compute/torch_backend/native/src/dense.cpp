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

constexpr int VECTORS = 2;
constexpr int64_t PANEL = VECTORS * LANES;
#if defined(__AVX512F__)
constexpr int TOKENS = 12; // multiplied at a time: as many as the registers hold sums for
#else
constexpr int TOKENS = 2;
#endif

#if defined(__AVX512BF16__)
typedef __m512bh Pairs;
inline Pairs load_pairs(const uint32_t *from) { return (Pairs)_mm512_loadu_si512(from); }
inline Floats dot(Floats total, Pairs row, uint32_t token) {
    return (Floats)_mm512_dpbf16_ps((__m512)total, row, (Pairs)_mm512_set1_epi32(int(token)));
}
#else
struct Pairs {
    Floats even, odd;
};
inline Pairs load_pairs(const uint32_t *from) {
    Words both;
    memcpy(&both, from, sizeof both);
    return {(Floats)(both << 16), (Floats)(both & 0xffff0000u)};
}
inline Floats dot(Floats total, Pairs row, uint32_t token) {
    return total + row.even * widened(bf16{uint16_t(token)}) + row.odd * widened(bf16{uint16_t(token >> 16)});
}
#endif

template <int M> void tile(const uint32_t *panel, int64_t pairs, const uint32_t *x, int64_t apart, float *out, int64_t stride) {
    Floats total[M][VECTORS];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < VECTORS; ++v) total[m][v] = Floats{};
    for (int64_t pair = 0; pair < pairs; ++pair, panel += PANEL) {
        Pairs row[VECTORS];
        for (int v = 0; v < VECTORS; ++v) row[v] = load_pairs(panel + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < VECTORS; ++v) total[m][v] = dot(total[m][v], row[v], x[m * apart + pair]);
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < VECTORS; ++v) store(out + m * stride + v * LANES, total[m][v]);
}

using Tile = void (*)(const uint32_t *, int64_t, const uint32_t *, int64_t, float *, int64_t);

template <int M = TOKENS> Tile of_tokens(int64_t tokens) {
    if constexpr (M > 1)
        if (tokens < M) return of_tokens<M - 1>(tokens);
    return tile<M>;
}

void rows(const Linear *linear, const void *prepared, int64_t tokens, int64_t first, int64_t last, float *out, int64_t stride) {
    const Dense &dense = static_cast<const Dense &>(*linear);
    const uint32_t *x = static_cast<const uint32_t *>(prepared);
    int64_t pairs = dense.panel_pairs(), apart = linear->prepared_bytes / 4, tiles = (tokens + TOKENS - 1) / TOKENS;
    for (int64_t row = first; row < last; row += PANEL) {
        const uint32_t *panel = dense.pairs + row * pairs;
        // Tiles that are as alike as can be.
        for (int64_t number = 0; number < tiles; ++number) {
            int64_t token = tokens * number / tiles, own = tokens * (number + 1) / tiles - token;
            const uint32_t *from = x + token * apart;
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
    bf16 *to = static_cast<bf16 *>(prepared);
    int64_t k = 0;
    for (; k + LANES <= linear->in_features; k += LANES) store(to + k, load(x + k));
    for (; k < linear->in_features; ++k) narrow(to + k, x[k]);
    if (k % 2) to[k] = bf16{0};
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
    linear->prepared_bytes = (in_features * 2 + 63) / 64 * 64;
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
