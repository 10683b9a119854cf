// Weights as they are: [out, in] of bfloat16 or float32, row after row. A product is a dot product along a row; several rows
// and tokens are multiplied at once, each in an accumulator of its own, so that no result hangs on how many there are.
#include "linear.h"
#include "team.h"
#include "vector.h"

#include <cstdlib>

namespace {

template <class T> struct Dense : Linear {
    const T *weight;
};

constexpr int ROWS = 4, TOKENS = 6, MORE_ROWS = 8, FEW_TOKENS = 4; // up to so few tokens, more rows at a time
constexpr int64_t BLOCK_BYTES = 256 << 10; // of tokens, or of rows, multiplied by each other
constexpr int64_t AHEAD = 16; // rows that are on their way into the second cache before they are wanted

// `turn` of `turns`: which of the tiles over these rows it is. Each asks for a share of the rows ahead, so that memory never idles.
template <class T, int R, int M>
void tile(int64_t turn, int64_t turns, const T *weight, int64_t width, const T *x, int64_t tokens_apart, float *out, int64_t stride) {
    Floats total[R][M];
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) total[r][m] = Floats{};
    int64_t k = 0;
#if defined(__AVX512BF16__)
    if constexpr (sizeof(T) == 2) {
        const T *ahead[R];
        for (int r = 0; r < R; ++r) ahead[r] = weight + (r % turns == turn ? AHEAD + r : r) * width;
        for (; k + 32 <= width; k += 32) {
            __m512bh tokens[M];
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) tokens[m] = (__m512bh)_mm512_loadu_si512(x + m * tokens_apart + k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                __builtin_prefetch(ahead[r] + k, 0, 2);
                __m512bh row = (__m512bh)_mm512_loadu_si512(weight + r * width + k);
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) total[r][m] = (Floats)_mm512_dpbf16_ps((__m512)total[r][m], row, tokens[m]);
            }
        }
        if (k < width) {
            __mmask32 mask = (1u << (width - k)) - 1;
            for (int r = 0; r < R; ++r) {
                __m512bh row = (__m512bh)_mm512_maskz_loadu_epi16(mask, weight + r * width + k);
                for (int m = 0; m < M; ++m) {
                    __m512bh token = (__m512bh)_mm512_maskz_loadu_epi16(mask, x + m * tokens_apart + k);
                    total[r][m] = (Floats)_mm512_dpbf16_ps((__m512)total[r][m], row, token);
                }
            }
        }
        k = width;
    }
#endif
    for (; k + LANES <= width; k += LANES) {
        Floats tokens[M];
        for (int m = 0; m < M; ++m) tokens[m] = load(x + m * tokens_apart + k);
        for (int r = 0; r < R; ++r) {
            Floats row = load(weight + r * width + k);
            for (int m = 0; m < M; ++m) total[r][m] += row * tokens[m];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int first = 0; first < R; first += 4) {
            Floats four[4] = {};
            float all[4];
            for (int r = first; r < R && r < first + 4; ++r) four[r - first] = total[r][m];
            sums_of_four(four, all);
            for (int r = first; r < R && r < first + 4; ++r) {
                float &one = all[r - first];
                for (int64_t rest = k; rest < width; ++rest)
                    one += widened(weight[r * width + rest]) * widened(x[m * tokens_apart + rest]);
                out[m * stride + r] = one;
            }
        }
}

// Tokens in tiles that are as alike as can be.
template <class T, int R>
void tokens_of(const T *weight, int64_t width, const T *x, int64_t apart, int64_t tokens, float *out, int64_t stride) {
    int64_t turns = (tokens + TOKENS - 1) / TOKENS;
    for (int64_t m = 0, turn = 0; turn < turns; ++turn) {
        int64_t own = (tokens - m + turns - turn - 1) / (turns - turn);
        const T *from = x + m * apart;
        float *to = out + m * stride;
        switch (own) {
        case 6: tile<T, R, 6>(turn, turns, weight, width, from, apart, to, stride); break;
        case 5: tile<T, R, 5>(turn, turns, weight, width, from, apart, to, stride); break;
        case 4: tile<T, R, 4>(turn, turns, weight, width, from, apart, to, stride); break;
        case 3: tile<T, R, 3>(turn, turns, weight, width, from, apart, to, stride); break;
        case 2: tile<T, R, 2>(turn, turns, weight, width, from, apart, to, stride); break;
        case 1: tile<T, R, 1>(turn, turns, weight, width, from, apart, to, stride); break;
        }
        m += own;
    }
}

template <class T>
void few_tokens_of(const T *weight, int64_t width, const T *x, int64_t apart, int64_t tokens, float *out, int64_t stride) {
    switch (tokens) {
    case 4: return tile<T, MORE_ROWS, 4>(0, 1, weight, width, x, apart, out, stride);
    case 3: return tile<T, MORE_ROWS, 3>(0, 1, weight, width, x, apart, out, stride);
    case 2: return tile<T, MORE_ROWS, 2>(0, 1, weight, width, x, apart, out, stride);
    case 1: return tile<T, MORE_ROWS, 1>(0, 1, weight, width, x, apart, out, stride);
    }
}

template <class T>
void rows_of(const T *weight, int64_t width, const T *x, int64_t apart, int64_t tokens, int64_t rows, float *out, int64_t stride) {
    int64_t row = 0;
    if (tokens <= FEW_TOKENS)
        for (; row + MORE_ROWS <= rows; row += MORE_ROWS)
            few_tokens_of<T>(weight + row * width, width, x, apart, tokens, out + row, stride);
    for (; row + ROWS <= rows; row += ROWS) tokens_of<T, ROWS>(weight + row * width, width, x, apart, tokens, out + row, stride);
    for (; row < rows; ++row) tokens_of<T, 1>(weight + row * width, width, x, apart, tokens, out + row, stride);
}

// Many tokens: as many of them and of the rows at a time as the second cache holds.
template <class T>
void rows(const Linear *linear, const void *prepared, int64_t tokens, int64_t first, int64_t last, float *out, int64_t stride) {
    const T *weight = static_cast<const Dense<T> *>(linear)->weight, *x = static_cast<const T *>(prepared);
    int64_t width = linear->in_features, apart = linear->prepared_bytes / sizeof(T);
    int64_t together = BLOCK_BYTES / (width * int64_t(sizeof(T))) / (2 * TOKENS) * (2 * TOKENS);
    together = together < 4 * TOKENS ? 4 * TOKENS : together;
    int64_t block = tokens <= together ? last - first : together;
    for (int64_t row = first; row < last; row += block) {
        int64_t own_rows = last - row < block ? last - row : block;
        for (int64_t token = 0; token < tokens; token += together) {
            int64_t own = tokens - token < together ? tokens - token : together;
            rows_of(weight + row * width, width, x + token * apart, apart, own, own_rows, out + token * stride + row - first, stride);
        }
    }
}

template <class T> void prepare(const Linear *linear, const float *x, void *prepared) {
    T *to = static_cast<T *>(prepared);
    int64_t k = 0;
    for (; k + LANES <= linear->in_features; k += LANES) store(to + k, load(x + k));
    for (; k < linear->in_features; ++k) narrow(to + k, x[k]);
}

template <class T> Linear *made(const void *weight, int64_t out_features, int64_t in_features) {
    auto *linear = static_cast<Dense<T> *>(calloc(1, sizeof(Dense<T>)));
    if (!linear) return nullptr;
    linear->prepare = prepare<T>;
    linear->rows = rows<T>;
    linear->out_features = out_features;
    linear->in_features = in_features;
    linear->prepared_bytes = (in_features * int64_t(sizeof(T)) + 63) / 64 * 64;
    linear->block = 1;
    linear->weight = static_cast<const T *>(weight);
    return linear;
}

} // namespace

EXPORT Linear *dense_new(const void *weight, int64_t out_features, int64_t in_features, int64_t bfloat16) {
    return bfloat16 ? made<bf16>(weight, out_features, in_features) : made<float>(weight, out_features, in_features);
}

EXPORT void linear_delete(Linear *linear) { free(linear); }
