// Causal attention over pages, keys and values read where they lie, softmax kept up with as they pass.
//
// A task is some queries of one sequence, in all heads that share one kv head: its rows. It goes through the keys in blocks of
// 64 positions: rearranges keys and values once, multiplies all rows by them. Where a sequence has few queries, tasks also part
// its keys, at every 256th position wherever it ends, and their results are joined: what comes out hangs on no other sequence.
#include "eight.h"
#include "layer.h"
#include "scratch.h"
#include "team.h"
#include "vector.h"

namespace {

constexpr int64_t KEYS = 64, MOST_ROWS = 64, SPLIT = 256;
constexpr int VECTORS = 4, TILE = 4;

// Products of a unit: one float, or two bfloat16 beside each other.
struct OfFloats {
    typedef float Unit;
    static Floats broadcast(const Unit *from) { return filled(*from); }
    static Floats add(Floats total, Floats a, const Unit *b) { return total + a * load(b); }
};

#if defined(__AVX512BF16__)
struct OfPairs {
    typedef uint32_t Unit;
    static __m512bh broadcast(const Unit *from) { return (__m512bh)_mm512_set1_epi32(int(*from)); }
    static Floats add(Floats total, __m512bh a, const Unit *b) {
        return (Floats)_mm512_dpbf16_ps((__m512)total, a, (__m512bh)_mm512_load_si512(b));
    }
};
#endif

// c [R, 64] (+)= a [R, depth] b [depth, columns]
template <class Of, int R, bool MORE>
inline void tile(const typename Of::Unit *a, int64_t a_apart, const typename Of::Unit *b, int64_t b_apart, int64_t depth,
                 float *c, int64_t c_apart) {
    Floats total[R][VECTORS];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < VECTORS; ++v) total[r][v] = MORE ? load(c + r * c_apart + v * LANES) : Floats{};
    for (int64_t d = 0; d < depth; ++d)
        for (int r = 0; r < R; ++r) {
            auto each = Of::broadcast(a + r * a_apart + d);
            for (int v = 0; v < VECTORS; ++v) total[r][v] = Of::add(total[r][v], each, b + d * b_apart + v * LANES);
        }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < VECTORS; ++v) store(c + r * c_apart + v * LANES, total[r][v]);
}

template <class Of, bool MORE>
void multiply(const typename Of::Unit *a, int64_t a_apart, const typename Of::Unit *b, int64_t b_apart, int64_t depth, float *c,
              int64_t c_apart, int64_t rows) {
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE)
        tile<Of, TILE, MORE>(a + r * a_apart, a_apart, b, b_apart, depth, c + r * c_apart, c_apart);
    a += r * a_apart;
    c += r * c_apart;
    switch (rows - r) {
    case 3: return tile<Of, 3, MORE>(a, a_apart, b, b_apart, depth, c, c_apart);
    case 2: return tile<Of, 2, MORE>(a, a_apart, b, b_apart, depth, c, c_apart);
    case 1: return tile<Of, 1, MORE>(a, a_apart, b, b_apart, depth, c, c_apart);
    }
}

// How keys, values, queries and weights are held while a block is worked on. dim is filled up to `wide`, a multiple of 64.
template <class T> struct ByFloats {
    typedef OfFloats Of;
    typedef float Unit;
    static int64_t units(int64_t number) { return number; }

    static void queries(const T *q, int64_t dim, Unit *to) {
        for (int64_t d = 0; d < dim; ++d) to[d] = widened(q[d]);
    }
    static void keys(const T *const *from, int64_t number, int64_t dim, Unit *to) { // [dim, KEYS]
        for (int64_t key = 0; key < KEYS; ++key)
            for (int64_t d = 0; d < dim; ++d) to[d * KEYS + key] = key < number ? widened(from[key][d]) : 0.0f;
    }
    static void values(const T *const *from, int64_t number, int64_t dim, int64_t wide, Unit *to) { // [KEYS, wide]
        for (int64_t key = 0; key < KEYS; ++key) {
            Unit *row = to + key * wide;
            for (int64_t d = 0; d < dim; d += LANES) store(row + d, key < number ? load(from[key] + d) : Floats{});
            for (int64_t d = dim; d < wide; d += LANES) store(row + d, Floats{});
        }
    }
    static void weights(const float *p, Unit *to) {
        for (int64_t key = 0; key < KEYS; key += LANES) store(to + key, load(p + key));
    }
};

#if defined(__AVX512BF16__)
inline void transpose(__m512i rows[16]) { // of 16 x 16 words
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
        rows[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
    }
}

struct ByPairs {
    typedef OfPairs Of;
    typedef uint32_t Unit;
    static int64_t units(int64_t number) { return number / 2; }

    static void queries(const bf16 *q, int64_t dim, Unit *to) { memcpy(to, q, dim * 2); }

    static void keys(const bf16 *const *from, int64_t number, int64_t dim, Unit *to) { // [dim / 2, KEYS] of neighbours in a key
        for (int64_t key = 0; key < KEYS; key += 16)
            for (int64_t d = 0; d < dim; d += 32) {
                __mmask32 mask = dim - d >= 32 ? 0xffffffffu : (1u << (dim - d)) - 1;
                __m512i rows[16];
                for (int i = 0; i < 16; ++i)
                    rows[i] = key + i < number ? _mm512_maskz_loadu_epi16(mask, from[key + i] + d) : _mm512_setzero_si512();
                transpose(rows);
                for (int64_t i = 0; i < 16 && d / 2 + i < dim / 2; ++i) _mm512_store_si512(to + (d / 2 + i) * KEYS + key, rows[i]);
            }
    }

    static void values(const bf16 *const *from, int64_t number, int64_t dim, int64_t wide, Unit *to) { // [KEYS / 2, wide] of two keys
        for (int64_t key = 0; key < KEYS; key += 2)
            for (int64_t d = 0; d < wide; d += LANES) {
                Halves a = {}, b = {};
                if (d < dim && key < number) memcpy(&a, from[key] + d, sizeof a);
                if (d < dim && key + 1 < number) memcpy(&b, from[key + 1] + d, sizeof b);
                Words both = __builtin_convertvector(a, Words) | __builtin_convertvector(b, Words) << 16;
                memcpy(to + key / 2 * wide + d, &both, sizeof both);
            }
    }

    static void weights(const float *p, Unit *to) {
        for (int64_t key = 0; key < KEYS; key += LANES) store(reinterpret_cast<bf16 *>(to) + key, load(p + key));
    }
};
template <class T> struct By : ByFloats<T> {};
template <> struct By<bf16> : ByPairs {};
#else
template <class T> struct By : ByFloats<T> {};
#endif

struct Task {
    int32_t sequence, kv_head, first, queries; // `first`: of the sequence's queries
    int32_t from, to;                          // keys
    int32_t part;                              // where its partial results go; -1: it is the whole
};

// Partial results of a task's rows: the sums, then the largest score, then the sum of weights.
int64_t part_floats(int64_t rows, int64_t wide) { return rows * (wide + 2); }

template <class T> struct Call {
    const Shape &shape;
    const Step &step;
    const T *q, *keys, *values;
    T *out;
    float *parts;
    int64_t group, wide, part_size, head_bytes;

    // Scores of a block's keys, as weights e^(score - largest) in `p`; the sums so far are scaled when the largest has grown.
    void soften(float *scores, int64_t rows, int64_t first_query_key, int64_t block_first, float scale, float *largest_of,
                float *total_of, float *sums, typename By<T>::Unit *p, int64_t p_apart) const {
        const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const Floats unseen = filled(-INFINITY);
        for (int64_t row = 0; row < rows; ++row) {
            float *own = scores + row * KEYS;
            int64_t seen = first_query_key + row / group + 1 - block_first; // keys of this block that the row may look at
            Floats score[VECTORS];
            for (int v = 0; v < VECTORS; ++v) score[v] = load(own + v * LANES) * scale;
            if (seen < KEYS) {
                int32_t limit = seen < 0 ? 0 : int32_t(seen);
                for (int v = 0; v < VECTORS; ++v) {
                    Words hidden = (Words)(lanes + int32_t(v * LANES) >= limit);
                    score[v] = (Floats)(((Words)unseen & hidden) | ((Words)score[v] & ~hidden));
                }
            }
            float before = largest_of[row];
            float now = largest(largest(largest(score[0], score[1]), largest(score[2], score[3])));
            now = now > before ? now : before;
            if (now == -INFINITY) now = -1e30f; // a row that sees none of these keys
            for (int v = 0; v < VECTORS; ++v) {
                score[v] = exponential(score[v] - now);
                store(own + v * LANES, score[v]);
            }
            float kept = before == now ? 1.0f : before == -INFINITY ? 0.0f : std::exp(before - now);
            if (kept != 1.0f)
                for (int64_t d = 0; d < wide; d += LANES) store(sums + row * wide + d, load(sums + row * wide + d) * kept);
            largest_of[row] = now;
            total_of[row] = total_of[row] * kept + sum((score[0] + score[1]) + (score[2] + score[3]));
            By<T>::weights(own, p + row * p_apart);
        }
    }

    int64_t place_of(const int32_t *pages, int64_t position, int64_t kv_head) const { // in bytes
        int64_t slot = pages[position / shape.page_size] * shape.page_size + position % shape.page_size;
        return (slot * shape.kv_heads + kv_head) * head_bytes;
    }

    void ask_for(const char *head) const {
        for (int64_t byte = 0; byte < head_bytes; byte += 64) __builtin_prefetch(head + byte, 0, 2);
    }

    // A head as it is computed with; what is held in eight bits is put into `room`.
    const T *widened_head(const char *head, T *room) const {
        if (!shape.eight) return reinterpret_cast<const T *>(head);
        from_eight(reinterpret_cast<const int8_t *>(head), shape.dim, room);
        return room;
    }

    void run(const Task &task) const {
        typedef By<T> B;
        typedef typename B::Unit Unit;
        int64_t dim = shape.dim, rows = task.queries * group, depth = B::units(dim);
        int64_t first_token = step.query_starts[task.sequence] + task.first;
        int64_t number = step.query_starts[task.sequence + 1] - step.query_starts[task.sequence];
        int64_t first_query_key = step.lengths[task.sequence] - number + task.first;
        const int32_t *pages = step.pages + task.sequence * step.pages_apart;
        float scale = 1.0f / std::sqrt(float(dim));

        static thread_local Scratch memory;
        int64_t sizes[] = {rows * depth * int64_t(sizeof(Unit)), depth * KEYS * int64_t(sizeof(Unit)),
                           B::units(KEYS) * wide * int64_t(sizeof(Unit)), rows * KEYS * 4,
                           rows * B::units(KEYS) * int64_t(sizeof(Unit)), rows * wide * 4,
                           shape.eight ? 2 * KEYS * dim * int64_t(sizeof(T)) : 0};
        int64_t whole = 0;
        for (int64_t &size : sizes) whole += size = (size + 63) / 64 * 64;
        char *place = memory.take(whole);
        auto next = [&](int index) {
            char *own = place;
            place += sizes[index];
            return own;
        };
        Unit *q_block = reinterpret_cast<Unit *>(next(0)), *k_block = reinterpret_cast<Unit *>(next(1)),
             *v_block = reinterpret_cast<Unit *>(next(2));
        float *scores = reinterpret_cast<float *>(next(3));
        Unit *p = reinterpret_cast<Unit *>(next(4));
        float *sums = reinterpret_cast<float *>(next(5));
        T *rooms = reinterpret_cast<T *>(next(6));
        float largest_of[MOST_ROWS], total_of[MOST_ROWS];

        for (int64_t row = 0; row < rows; ++row) {
            int64_t head = task.kv_head * group + row % group;
            B::queries(q + ((first_token + row / group) * shape.heads + head) * dim, dim, q_block + row * depth);
            largest_of[row] = -INFINITY;
            total_of[row] = 0;
        }
        memset(sums, 0, rows * wide * 4);
        for (int64_t block = task.from; block < task.to; block += KEYS) {
            int64_t keys_here = task.to - block < KEYS ? task.to - block : KEYS;
            const T *k_rows[KEYS], *v_rows[KEYS];
            const char *k_heads = reinterpret_cast<const char *>(keys), *v_heads[KEYS];
            for (int64_t key = 0; key < keys_here; ++key) {
                int64_t at = place_of(pages, block + key, task.kv_head);
                k_rows[key] = widened_head(k_heads + at, rooms + key * dim);
                v_heads[key] = reinterpret_cast<const char *>(values) + at;
                ask_for(v_heads[key]);
            }
            B::keys(k_rows, keys_here, dim, k_block);
            multiply<typename B::Of, false>(q_block, depth, k_block, KEYS, depth, scores, KEYS, rows);
            for (int64_t key = block + KEYS; key < block + 2 * KEYS && key < task.to; ++key)
                ask_for(k_heads + place_of(pages, key, task.kv_head));
            for (int64_t key = 0; key < keys_here; ++key) v_rows[key] = widened_head(v_heads[key], rooms + (KEYS + key) * dim);
            soften(scores, rows, first_query_key, block, scale, largest_of, total_of, sums, p, B::units(KEYS));
            B::values(v_rows, keys_here, dim, wide, v_block);
            for (int64_t d = 0; d < wide; d += VECTORS * LANES)
                multiply<typename B::Of, true>(p, B::units(KEYS), v_block + d, wide, B::units(KEYS), sums + d, wide, rows);
        }
        if (task.part >= 0) {
            float *part = parts + task.part * part_size;
            memcpy(part, sums, rows * wide * 4);
            memcpy(part + rows * wide, largest_of, rows * 4);
            memcpy(part + rows * (wide + 1), total_of, rows * 4);
            return;
        }
        for (int64_t row = 0; row < rows; ++row) {
            T *to = out + ((first_token + row / group) * shape.heads + task.kv_head * group + row % group) * dim;
            for (int64_t d = 0; d < dim; d += LANES) store(to + d, load(sums + row * wide + d) / total_of[row]);
        }
    }

    // The parts of one task's keys, in order.
    void join(const Task &task, int64_t number) const {
        int64_t dim = shape.dim, rows = task.queries * group;
        const float *first = parts + task.part * part_size;
        for (int64_t row = 0; row < rows; ++row) {
            float most = -INFINITY, total = 0;
            for (int64_t part = 0; part < number; ++part) {
                float own = first[part * part_size + rows * wide + row];
                most = own > most ? own : most;
            }
            int64_t token = step.query_starts[task.sequence] + task.first + row / group;
            T *to = out + (token * shape.heads + task.kv_head * group + row % group) * dim;
            float mixed[MOST_DIM] = {};
            for (int64_t part = 0; part < number; ++part) {
                const float *own = first + part * part_size;
                float factor = std::exp(own[rows * wide + row] - most);
                total += factor * own[rows * (wide + 1) + row];
                for (int64_t d = 0; d < dim; d += LANES)
                    store(mixed + d, load(mixed + d) + load(own + row * wide + d) * factor);
            }
            for (int64_t d = 0; d < dim; d += LANES) store(to + d, load(mixed + d) / total);
        }
    }

    static constexpr int64_t MOST_DIM = 1024;
};

thread_local Scratch task_memory, part_memory;

template <class T>
void attend(const Shape &shape, const Step &step, const T *q, const T *keys, const T *values, T *out) {
    int64_t group = shape.heads / shape.kv_heads, wide = (shape.dim + 63) / 64 * 64;
    int64_t queries = MOST_ROWS / group, tasks_at_most = 0;
    for (int64_t s = 0; s < step.sequences; ++s) {
        int64_t number = step.query_starts[s + 1] - step.query_starts[s];
        tasks_at_most += shape.kv_heads * (number <= queries && !shape.whole ? (step.lengths[s] + SPLIT - 1) / SPLIT : (number + queries - 1) / queries);
    }
    Task *tasks = reinterpret_cast<Task *>(task_memory.take(tasks_at_most * sizeof(Task)));
    int64_t number_of_tasks = 0, number_of_parts = 0, most_queries = 0;
    for (int64_t s = 0; s < step.sequences; ++s) {
        int32_t number = step.query_starts[s + 1] - step.query_starts[s], length = step.lengths[s], behind = length - number;
        for (int32_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
            if (number <= queries && length > SPLIT && !shape.whole) {
                if (number > most_queries) most_queries = number;
                for (int32_t from = 0; from < length; from += SPLIT) {
                    int32_t to = from + int32_t(SPLIT) < length ? from + int32_t(SPLIT) : length;
                    tasks[number_of_tasks++] = {int32_t(s), kv_head, 0, number, from, to, int32_t(number_of_parts++)};
                }
                continue;
            }
            // The last queries look at most keys: they come first, and the small tasks fill up the end.
            for (int32_t blocks = (number + queries - 1) / queries; blocks-- > 0;) {
                int32_t first = blocks * queries, own = number - first < queries ? number - first : int32_t(queries);
                tasks[number_of_tasks++] = {int32_t(s), kv_head, first, own, 0, behind + first + own, -1};
            }
        }
    }
    int64_t part_size = part_floats(most_queries * group, wide);
    float *parts = reinterpret_cast<float *>(part_memory.take(number_of_parts * part_size * 4 + 64));
    Call<T> call{shape, step, q, keys, values, out, parts, group, wide, part_size,
                 shape.eight ? eight_bytes(shape.dim) : shape.dim * int64_t(sizeof(T))};
    team::each(number_of_tasks, [&](int64_t task) { call.run(tasks[task]); });
    for (int64_t task = 0; task < number_of_tasks;) {
        int64_t number = 1;
        if (tasks[task].part >= 0) {
            while (task + number < number_of_tasks && tasks[task + number].from > 0) ++number;
            call.join(tasks[task], number);
        }
        task += number;
    }
}

} // namespace

EXPORT void attention(const Shape *shape, const Step *step, const void *q, const void *keys, const void *values, void *out) {
    if (shape->bfloat16)
        attend(*shape, *step, static_cast<const bf16 *>(q), static_cast<const bf16 *>(keys), static_cast<const bf16 *>(values),
               static_cast<bf16 *>(out));
    else
        attend(*shape, *step, static_cast<const float *>(q), static_cast<const float *>(keys), static_cast<const float *>(values),
               static_cast<float *>(out));
}
