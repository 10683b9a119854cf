// The operations of a layer but attention, alone and around a native projection.
#include "layer.h"
#include "linear.h"
#include "scratch.h"
#include "team.h"
#include "vector.h"

namespace {

constexpr int64_t ALONE = 1 << 14; // values that one thread works through before another would have woken up

thread_local Scratch prepared_memory, product_memory;

template <class Body> void tokens_each(int64_t tokens, int64_t values, Body &&body) {
    if (tokens * values <= ALONE) {
        for (int64_t token = 0; token < tokens; ++token) body(token);
        return;
    }
    int64_t block = values >= ALONE ? 1 : ALONE / values;
    team::blocks(tokens, block, [&](int64_t first, int64_t last) {
        for (int64_t token = first; token < last; ++token) body(token);
    });
}

template <class In, class Out> void normed(const In *x, const In *weight, float eps, int64_t width, Out *to) {
    Floats squares[4] = {};
    int64_t k = 0;
    for (; k + 4 * LANES <= width; k += 4 * LANES)
        for (int part = 0; part < 4; ++part) {
            Floats value = load(x + k + part * LANES);
            squares[part] += value * value;
        }
    float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (; k < width; ++k) total += widened(x[k]) * widened(x[k]);
    float factor = 1.0f / std::sqrt(total / float(width) + eps);
    for (k = 0; k + LANES <= width; k += LANES) store(to + k, load(x + k) * factor * load(weight + k));
    for (; k < width; ++k) narrow(to + k, widened(x[k]) * factor * widened(weight[k]));
}

template <class T> void norms(const T *x, const T *weight, float eps, int64_t tokens, int64_t width, T *to) {
    tokens_each(tokens, width, [&](int64_t token) { normed(x + token * width, weight, eps, width, to + token * width); });
}

// The head `from` turned to a position: to memory of its own.
template <class T> void turn(const T *from, const float *cosine, const float *sine, int64_t dim, bool interleaved, float *to) {
    int64_t half = dim / 2;
    if (interleaved)
        for (int64_t pair = 0; pair < half; ++pair) {
            float a = widened(from[2 * pair]), b = widened(from[2 * pair + 1]);
            to[2 * pair] = a * cosine[pair] - b * sine[pair];
            to[2 * pair + 1] = b * cosine[pair] + a * sine[pair];
        }
    else
        for (int64_t pair = 0; pair < half; ++pair) {
            float a = widened(from[pair]), b = widened(from[half + pair]);
            to[pair] = a * cosine[pair] - b * sine[pair];
            to[half + pair] = b * cosine[pair] + a * sine[pair];
        }
}

template <class In, class Out> void convert(const In *from, int64_t number, Out *to) {
    int64_t k = 0;
    for (; k + LANES <= number; k += LANES) store(to + k, load(from + k));
    for (; k < number; ++k) narrow(to + k, widened(from[k]));
}

constexpr int64_t MOST_DIM = 1024;

// heads [tokens, heads + 2 kv_heads, dim], from the step's token `first` on: q is turned into `q`, k turned and v as it is are
// written to their slots.
template <class In, class T>
void place(const In *heads, const Shape &shape, const Step &step, int64_t first, int64_t tokens, T *keys, T *values, T *q) {
    int64_t dim = shape.dim, turning = shape.heads + shape.kv_heads, all = turning + shape.kv_heads;
    tokens_each(tokens, all * dim, [&](int64_t number) {
        float turned[MOST_DIM];
        const In *own = heads + number * all * dim;
        int64_t token = first + number;
        const float *cosine = shape.cosines + step.positions[token] * (dim / 2);
        const float *sine = shape.sines + step.positions[token] * (dim / 2);
        int64_t slot = step.slots[token] * shape.kv_heads * dim;
        for (int64_t head = 0; head < turning; ++head) {
            turn(own + head * dim, cosine, sine, dim, shape.interleaved, turned);
            T *to = head < shape.heads ? q + (token * shape.heads + head) * dim : keys + slot + (head - shape.heads) * dim;
            convert(turned, dim, to);
        }
        convert(own + turning * dim, shape.kv_heads * dim, values + slot);
    });
}

// in [tokens, 2 width] -> silu(first half) * second half
template <class In, class T> void gated(const In *in, int64_t tokens, int64_t width, T *to) {
    tokens_each(tokens, 2 * width, [&](int64_t token) {
        const In *gate = in + token * 2 * width, *up = gate + width;
        T *own = to + token * width;
        int64_t k = 0;
        for (; k + LANES <= width; k += LANES) {
            Floats x = largest(filled(-100.0f), load(gate + k)); // below, the result is 0; a NaN stays one
            store(own + k, x / (1.0f + exponential(-x)) * load(up + k));
        }
        for (; k < width; ++k) {
            float x = widened(gate[k]);
            narrow(own + k, x / (1.0f + std::exp(-x)) * widened(up[k]));
        }
    });
}

char *prepared_for(const Linear *linear, int64_t tokens) { return prepared_memory.take(tokens * linear->prepared_bytes); }

template <class T> const void *prepared_of(const Linear *linear, const T *x, int64_t tokens) {
    char *prepared = prepared_for(linear, tokens);
    int64_t width = linear->in_features;
    tokens_each(tokens, width, [&](int64_t token) {
        alignas(64) float wide[width];
        convert(x + token * width, width, wide);
        linear->prepare(linear, wide, prepared + token * linear->prepared_bytes);
    });
    return prepared;
}

template <class T>
const void *prepared_of_normed(const Linear *linear, const T *x, const T *weight, float eps, int64_t tokens) {
    char *prepared = prepared_for(linear, tokens);
    int64_t width = linear->in_features;
    tokens_each(tokens, width, [&](int64_t token) {
        alignas(64) float wide[width];
        normed(x + token * width, weight, eps, width, wide);
        linear->prepare(linear, wide, prepared + token * linear->prepared_bytes);
    });
    return prepared;
}

constexpr int64_t TASKS_A_MEMBER = 8, LEAST_ROWS = 64, MOST_ROWS = 512;

// body(first, last) for rows of the weight, enough of them at a time.
template <class Body> void rows_each(const Linear *linear, Body &&body) {
    int64_t rows = linear->out_features / (TASKS_A_MEMBER * team::size());
    rows = rows < LEAST_ROWS ? LEAST_ROWS : rows > MOST_ROWS ? MOST_ROWS : rows;
    rows = (rows + linear->block - 1) / linear->block * linear->block;
    team::blocks(linear->out_features, rows, body);
}

void product(const Linear *linear, const void *prepared, int64_t tokens, float *out) {
    rows_each(linear, [&](int64_t first, int64_t last) {
        linear->rows(linear, prepared, tokens, first, last, out + first, linear->out_features);
    });
}

float *product(const Linear *linear, const void *prepared, int64_t tokens) {
    float *out = reinterpret_cast<float *>(product_memory.take(tokens * linear->out_features * 4));
    product(linear, prepared, tokens, out);
    return out;
}

// Of a long prompt: bounds what calls keep in memory, and the caches see it again before it has gone.
constexpr int64_t MOST_TOKENS = 512;

template <class Body> void tokens_at_a_time(int64_t tokens, Body &&body) {
    for (int64_t first = 0; first < tokens; first += MOST_TOKENS)
        body(first, tokens - first < MOST_TOKENS ? tokens - first : MOST_TOKENS);
}

template <class T> void add(const Linear *linear, const T *x, int64_t tokens, T *residual) {
    const void *prepared = prepared_of(linear, x, tokens);
    int64_t width = linear->out_features;
    float *out = reinterpret_cast<float *>(product_memory.take(tokens * width * 4));
    rows_each(linear, [&](int64_t first, int64_t last) {
        linear->rows(linear, prepared, tokens, first, last, out + first, width);
        for (int64_t token = 0; token < tokens; ++token) {
            const float *sums = out + token * width;
            T *to = residual + token * width;
            int64_t row = first;
            for (; row + LANES <= last; row += LANES) store(to + row, load(to + row) + load(sums + row));
            for (; row < last; ++row) narrow(to + row, widened(to[row]) + sums[row]);
        }
    });
}

} // namespace

#define OF_KIND(bfloat16, ...)                                                                                                \
    do {                                                                                                                      \
        if (bfloat16) {                                                                                                       \
            using T = bf16;                                                                                                   \
            __VA_ARGS__;                                                                                                      \
        } else {                                                                                                              \
            using T = float;                                                                                                  \
            __VA_ARGS__;                                                                                                      \
        }                                                                                                                     \
    } while (0)
#define IN(pointer) static_cast<const T *>(pointer)
#define OUT(pointer) static_cast<T *>(pointer)

// --- alone, beside projections that torch computes ---

EXPORT void rms_norm(int64_t bfloat16, const void *x, const void *weight, float eps, int64_t tokens, int64_t width, void *to) {
    OF_KIND(bfloat16, norms(IN(x), IN(weight), eps, tokens, width, OUT(to)));
}

EXPORT void rotate_and_place(const Shape *shape, const Step *step, const void *heads, void *keys, void *values, void *q) {
    OF_KIND(shape->bfloat16, place(IN(heads), *shape, *step, 0, step->tokens, OUT(keys), OUT(values), OUT(q)));
}

EXPORT void silu_times(int64_t bfloat16, const void *in, int64_t tokens, int64_t width, void *to) {
    OF_KIND(bfloat16, gated(IN(in), tokens, width, OUT(to)));
}

// --- around a native projection ---

EXPORT void linear_qkv(const Linear *linear, const void *hidden, const void *norm, float eps, const Shape *shape,
                       const Step *step, void *keys, void *values, void *q) {
    OF_KIND(shape->bfloat16, tokens_at_a_time(step->tokens, [&](int64_t first, int64_t tokens) {
        const T *own = IN(hidden) + first * linear->in_features;
        const float *heads = product(linear, prepared_of_normed(linear, own, IN(norm), eps, tokens), tokens);
        place(heads, *shape, *step, first, tokens, OUT(keys), OUT(values), OUT(q));
    }));
}

EXPORT void linear_add(const Linear *linear, int64_t bfloat16, const void *x, int64_t tokens, void *residual) {
    OF_KIND(bfloat16, tokens_at_a_time(tokens, [&](int64_t first, int64_t own) {
        add(linear, IN(x) + first * linear->in_features, own, OUT(residual) + first * linear->out_features);
    }));
}

EXPORT void linear_gate_up(const Linear *linear, int64_t bfloat16, const void *hidden, const void *norm, float eps,
                           int64_t tokens, void *to) {
    OF_KIND(bfloat16, tokens_at_a_time(tokens, [&](int64_t first, int64_t own) {
        const void *prepared = prepared_of_normed(linear, IN(hidden) + first * linear->in_features, IN(norm), eps, own);
        const float *both = product(linear, prepared, own);
        gated(both, own, linear->out_features / 2, OUT(to) + first * (linear->out_features / 2));
    }));
}

EXPORT void linear_logits(const Linear *linear, int64_t bfloat16, const void *hidden, const void *norm, float eps,
                          int64_t tokens, float *logits) {
    OF_KIND(bfloat16, product(linear, prepared_of_normed(linear, IN(hidden), IN(norm), eps, tokens), tokens, logits));
}

// The projection alone.
EXPORT void linear_apply(const Linear *linear, int64_t bfloat16, const void *x, int64_t tokens, float *to) {
    OF_KIND(bfloat16, product(linear, prepared_of(linear, IN(x), tokens), tokens, to));
}
