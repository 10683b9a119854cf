// The operations of a layer but attention, alone and around a native projection.
#include "eight.h"
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

// One head of a token: of q it is turned into `q`, of k turned and of v as it is written to its slot.
template <class In, class T>
void place_head(const In *from, const Shape &shape, const Step &step, int64_t head, int64_t token, T *keys, T *values, T *q) {
    int64_t dim = shape.dim, turning = shape.heads + shape.kv_heads, slot = step.slots[token] * shape.kv_heads;
    auto keep = [&](const auto *kept, int64_t kv_head, T *pages) {
        if (shape.eight)
            to_eight(kept, dim, reinterpret_cast<int8_t *>(pages) + (slot + kv_head) * eight_bytes(dim));
        else
            convert(kept, dim, pages + (slot + kv_head) * dim);
    };
    if (head >= turning) return keep(from, head - turning, values);
    float turned[MOST_DIM];
    int64_t position = step.positions[token] * (dim / 2);
    turn(from, shape.cosines + position, shape.sines + position, dim, shape.interleaved, turned);
    if (head >= shape.heads) return keep(turned, head - shape.heads, keys);
    convert(turned, dim, q + (token * shape.heads + head) * dim);
}

// heads [tokens, heads + 2 kv_heads, dim], from the step's token `first` on.
template <class In, class T>
void place(const In *heads, const Shape &shape, const Step &step, int64_t first, int64_t tokens, T *keys, T *values, T *q) {
    int64_t dim = shape.dim, all = shape.heads + 2 * shape.kv_heads;
    tokens_each(tokens, all * dim, [&](int64_t token) {
        for (int64_t head = 0; head < all; ++head)
            place_head(heads + (token * all + head) * dim, shape, step, head, first + token, keys, values, q);
    });
}

template <class In, class T> void gated(const In *gate, const In *up, int64_t width, T *to) {
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES) {
        Floats x = largest(filled(-100.0f), load(gate + k)); // below, the result is 0; a NaN stays one
        store(to + k, x / (1.0f + exponential(-x)) * load(up + k));
    }
    for (; k < width; ++k) {
        float x = widened(gate[k]);
        narrow(to + k, x / (1.0f + std::exp(-x)) * widened(up[k]));
    }
}

// in [tokens, 2 width] -> silu(first half) * second half
template <class In, class T> void all_gated(const In *in, int64_t tokens, int64_t width, T *to) {
    tokens_each(tokens, 2 * width, [&](int64_t token) {
        gated(in + token * 2 * width, in + token * 2 * width + width, width, to + token * width);
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

constexpr int64_t TASKS_A_MEMBER = 8, LEAST_ROWS = 32, MOST_ROWS = 256;
constexpr int64_t MOST_PRODUCTS = 1 << 16; // of a task: as many as stay in the second cache

// body(first, last, products) for some of `rows` rows at a time; products has room for [tokens, last - first] `times` over.
template <class Body> void rows_each(int64_t rows, int64_t block, int64_t tokens, int64_t times, Body &&body) {
    int64_t own = rows / (TASKS_A_MEMBER * team::size());
    own = own < LEAST_ROWS ? LEAST_ROWS : own > MOST_ROWS ? MOST_ROWS : own;
    if (times * tokens * own > MOST_PRODUCTS) own = MOST_PRODUCTS / (times * tokens);
    own = (own + block - 1) / block * block;
    team::blocks(
        rows, own,
        [&](int64_t first, int64_t last) {
            static thread_local Scratch memory;
            body(first, last, reinterpret_cast<float *>(memory.take(times * tokens * (last - first) * 4)));
        },
        true);
}

void product(const Linear *linear, const void *prepared, int64_t tokens, float *out) {
    rows_each(linear->out_features, linear->block, 0, 0, [&](int64_t first, int64_t last, float *) {
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

template <class T>
void qkv(const Linear *linear, const T *hidden, const T *norm, float eps, const Shape &shape, const Step &step, T *keys,
         T *values, T *q) {
    tokens_at_a_time(step.tokens, [&](int64_t start, int64_t tokens) {
        const void *prepared = prepared_of_normed(linear, hidden + start * linear->in_features, norm, eps, tokens);
        int64_t dim = shape.dim;
        if (dim % linear->block || linear->out_features / dim < 4 * team::size())
            return place(product(linear, prepared, tokens), shape, step, start, tokens, keys, values, q);
        rows_each(linear->out_features, dim, tokens, 1, [&](int64_t first, int64_t last, float *products) {
            linear->rows(linear, prepared, tokens, first, last, products, last - first);
            for (int64_t token = 0; token < tokens; ++token)
                for (int64_t row = first; row < last; row += dim, products += dim)
                    place_head(products, shape, step, row / dim, start + token, keys, values, q);
        });
    });
}

template <class T> void add(const Linear *linear, const T *x, int64_t all, T *residual) {
    int64_t width = linear->out_features;
    tokens_at_a_time(all, [&](int64_t start, int64_t tokens) {
        const void *prepared = prepared_of(linear, x + start * linear->in_features, tokens);
        rows_each(width, linear->block, tokens, 1, [&](int64_t first, int64_t last, float *products) {
            linear->rows(linear, prepared, tokens, first, last, products, last - first);
            for (int64_t token = 0; token < tokens; ++token) {
                T *to = residual + (start + token) * width + first;
                const float *sums = products + token * (last - first);
                int64_t row = 0;
                for (; row + LANES <= last - first; row += LANES) store(to + row, load(to + row) + load(sums + row));
                for (; row < last - first; ++row) narrow(to + row, widened(to[row]) + sums[row]);
            }
        });
    });
}

template <class T>
void gate_up(const Linear *linear, const T *hidden, const T *norm, float eps, int64_t all, T *to) {
    int64_t width = linear->out_features / 2;
    tokens_at_a_time(all, [&](int64_t start, int64_t tokens) {
        const void *prepared = prepared_of_normed(linear, hidden + start * linear->in_features, norm, eps, tokens);
        if (width % linear->block) return all_gated(product(linear, prepared, tokens), tokens, width, to + start * width);
        rows_each(width, linear->block, tokens, 2, [&](int64_t first, int64_t last, float *gate) {
            int64_t own = last - first;
            float *up = gate + tokens * own;
            linear->rows(linear, prepared, tokens, first, last, gate, own);
            linear->rows(linear, prepared, tokens, width + first, width + last, up, own);
            for (int64_t token = 0; token < tokens; ++token)
                gated(gate + token * own, up + token * own, own, to + (start + token) * width + first);
        });
    });
}

thread_local Scratch layer_memory;

template <class T>
void layer(const Layer &l, const Shape &shape, const Step &step, T *keys, T *values, T *hidden) {
    int64_t tokens = step.tokens, q_width = shape.heads * shape.dim, width = l.gate_up->out_features / 2;
    int64_t q_bytes = (tokens * q_width * int64_t(sizeof(T)) + 63) / 64 * 64;
    char *memory = layer_memory.take(2 * q_bytes + tokens * width * int64_t(sizeof(T)));
    T *q = reinterpret_cast<T *>(memory), *mixed = reinterpret_cast<T *>(memory + q_bytes);
    T *between = reinterpret_cast<T *>(memory + 2 * q_bytes);
    qkv(l.qkv, hidden, static_cast<const T *>(l.input_norm), l.eps, shape, step, keys, values, q);
    attention(&shape, &step, q, keys, values, mixed);
    add(l.o, mixed, tokens, hidden);
    gate_up(l.gate_up, hidden, static_cast<const T *>(l.post_norm), l.eps, tokens, between);
    add(l.down, between, tokens, hidden);
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
    OF_KIND(bfloat16, all_gated(IN(in), tokens, width, OUT(to)));
}

// --- around a native projection ---

EXPORT void linear_qkv(const Linear *linear, const void *hidden, const void *norm, float eps, const Shape *shape,
                       const Step *step, void *keys, void *values, void *q) {
    OF_KIND(shape->bfloat16, qkv(linear, IN(hidden), IN(norm), eps, *shape, *step, OUT(keys), OUT(values), OUT(q)));
}

EXPORT void linear_add(const Linear *linear, int64_t bfloat16, const void *x, int64_t tokens, void *residual) {
    OF_KIND(bfloat16, add(linear, IN(x), tokens, OUT(residual)));
}

EXPORT void linear_gate_up(const Linear *linear, int64_t bfloat16, const void *hidden, const void *norm, float eps,
                           int64_t tokens, void *to) {
    OF_KIND(bfloat16, gate_up(linear, IN(hidden), IN(norm), eps, tokens, OUT(to)));
}

EXPORT void linear_logits(const Linear *linear, int64_t bfloat16, const void *hidden, const void *norm, float eps,
                          int64_t tokens, float *logits) {
    OF_KIND(bfloat16, tokens_at_a_time(tokens, [&](int64_t first, int64_t own) {
        const void *prepared = prepared_of_normed(linear, IN(hidden) + first * linear->in_features, IN(norm), eps, own);
        product(linear, prepared, own, logits + first * linear->out_features);
    }));
}

// The projection alone.
EXPORT void linear_apply(const Linear *linear, int64_t bfloat16, const void *x, int64_t tokens, float *to) {
    OF_KIND(bfloat16, tokens_at_a_time(tokens, [&](int64_t first, int64_t own) {
        product(linear, prepared_of(linear, IN(x) + first * linear->in_features, own), own, to + first * linear->out_features);
    }));
}

// Layers one after the other, all their projections native.
EXPORT void whole_layers(const Layer *layers, int64_t number, const Shape *shape, const Step *step, void *const *keys,
                         void *const *values, void *hidden) {
    for (int64_t l = 0; l < number; ++l)
        OF_KIND(shape->bfloat16, layer(layers[l], *shape, *step, OUT(keys[l]), OUT(values[l]), OUT(hidden)));
}

// Where each row of `values` [rows, width] is largest, the first of equals; a NaN is larger than any number.
EXPORT void largest_places(const float *values, int64_t rows, int64_t width, int64_t *places) {
    constexpr int64_t PART = 1 << 13;
    struct Found {
        float value;
        int64_t place;
    };
    static thread_local Scratch memory;
    int64_t parts = (width + PART - 1) / PART;
    Found *found = reinterpret_cast<Found *>(memory.take(rows * parts * int64_t(sizeof(Found))));
    team::each(rows * parts, [&](int64_t task) {
        const float *row = values + task / parts * width;
        int64_t first = task % parts * PART, last = first + PART < width ? first + PART : width, k = first;
        Floats most = filled(-INFINITY);
        Ints nan = {};
        for (; k + LANES <= last; k += LANES) {
            Floats here = load(row + k);
            most = largest(most, here);
            nan |= here != here;
        }
        float value = largest(most);
        bool any_nan = sum(__builtin_convertvector(nan, Floats)) != 0;
        for (; k < last; ++k) {
            value = row[k] > value ? row[k] : value;
            any_nan |= row[k] != row[k];
        }
        for (k = first; any_nan ? row[k] == row[k] : row[k] != value; ++k) {}
        found[task] = {row[k], k};
    });
    for (int64_t row = 0; row < rows; ++row) {
        Found best = found[row * parts];
        for (int64_t part = 1; part < parts; ++part) {
            Found next = found[row * parts + part];
            if (best.value == best.value && (next.value > best.value || next.value != next.value)) best = next;
        }
        places[row] = best.place;
    }
}
