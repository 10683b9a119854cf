// Matrices packed in eight or four bits, times activations rounded to eight or sixteen.
//
// A row of activations is rounded in blocks of 32, each with a scale of its own, to one digit or two. Products are summed
// exactly within a block, and blocks in float32 in their order: a row's result hangs on nothing but the row.

//
// Where lanes.h has nothing for a machine there is none of this, and packed_instructions() says so.
#include "lanes.h"
#include "linear.h"
#include "team.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef LANES_IN

namespace {

using namespace lanes;

constexpr int64_t BLOCK = 32;       // activations to a scale
constexpr int64_t STEPS = 8;        // of a block: a lane sums four products at a time
constexpr int64_t PANEL = TILES * LANES;
constexpr float SECOND = 256.f;     // steps of the second digit in one of the first
constexpr float SMALLEST = 1e-30f;  // a block with nothing larger counts as zeros

// `panels`: [panels, groups], of each the scales [PANEL] in bfloat16 and the codes [blocks, STEPS, PANEL outputs, 4] as unsigned
// bytes; in four bits two steps share a byte's halves, the earlier the low one. Without groups a panel is one, with scales in
// float32. It is the order they are read in: memory gives the most to who walks straight on. Filled up with zeros.
struct Packed : Linear {
    int64_t group; // inputs to a scale; 0: all
    int64_t bits, digits;
    uint8_t *panels;

    int64_t number() const { return (out_features + PANEL - 1) / PANEL; }
    int64_t blocks() const { return (in_features + BLOCK - 1) / BLOCK; }
    int64_t groups() const { return group ? (in_features + group - 1) / group : 1; }
    int64_t scale_bytes() const { return PANEL * (group ? 2 : 4); }
    int64_t block_bytes() const { return PANEL * BLOCK * bits / 8; }
    int64_t panel_bytes() const { return groups() * scale_bytes() + blocks() * block_bytes(); }
    int64_t row_bytes() const { return prepared_bytes / digits; }
    int64_t zero() const { return bits == 8 ? 128 : 8; }
};

// A block of activations. A row is as many as the matrix has blocks; a token has a row for each digit.
struct Rounded {
    int8_t digits[BLOCK];
    float unit;
    int32_t offset; // takes away again what the codes' zero adds
};

const Rounded &row(const Rounded *first, int64_t bytes, int number) {
    return *reinterpret_cast<const Rounded *>(reinterpret_cast<const char *>(first) + number * bytes);
}

// --- activations -----------------------------------------------------------------------------------------------------------

int32_t put(const float *whole, int8_t *digits) {
    int32_t sum = 0;
    for (int i = 0; i < BLOCK; ++i) {
        digits[i] = int8_t(int32_t(whole[i]));
        sum += int32_t(whole[i]);
    }
    return sum;
}

void round_block(const float *x, int32_t zero, Rounded &first, Rounded *second) {
    uint32_t bits[BLOCK], largest = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < BLOCK; ++i) {
        const uint32_t size = bits[i] & 0x7fffffff; // orders as the numbers do, and what is no number comes last
        largest = size > largest ? size : largest;
    }
    float most;
    memcpy(&most, &largest, 4);
    const bool finite = largest < 0x7f800000;
    const bool some = finite && most >= SMALLEST;
    const float inverse = some ? 127.f / most : 0.f;
    const float magic = 12582912.f; // 1.5 * 2^23: added and taken away, it leaves a whole number
    float steps[BLOCK], whole[BLOCK];
    for (int i = 0; i < BLOCK; ++i) {
        steps[i] = some ? x[i] * inverse : 0.f;
        whole[i] = (steps[i] + magic) - magic;
    }
    first.unit = some ? most / 127.f : finite ? 0.f : NAN;
    first.offset = -zero * put(whole, first.digits);
    if (!second) return;
    for (int i = 0; i < BLOCK; ++i) {
        const float rest = ((steps[i] - whole[i]) * SECOND + magic) - magic;
        whole[i] = rest < 127.f ? rest : 127.f; // of half a step there is one less
    }
    second->unit = first.unit / SECOND;
    second->offset = -zero * put(whole, second->digits);
}

void round_token(const Packed &m, const float *x, void *prepared) {
    Rounded *first = static_cast<Rounded *>(prepared), *second = nullptr;
    if (m.digits == 2) second = reinterpret_cast<Rounded *>(static_cast<char *>(prepared) + m.row_bytes());
    for (int64_t block = 0; block < m.blocks(); ++block) {
        const int64_t start = block * BLOCK, left = m.in_features - start;
        float last[BLOCK] = {};
        if (left < BLOCK) memcpy(last, x + start, 4 * left);
        round_block(left < BLOCK ? last : x + start, int32_t(m.zero()), first[block], second ? second + block : nullptr);
    }
}

// --- the product -----------------------------------------------------------------------------------------------------------

// What to bring nearer meanwhile: some lines of memory with every block. Behind a task's last panel, too: most often its
// thread goes on there.
struct Ahead {
    const uint8_t *at;
    int64_t lines;
};

// `group`: blocks to a scale. `apart`: bytes between rows of x.
template <int N, int BITS, bool GROUPED, int DIGITS>
inline void product(const uint8_t *panel, int64_t blocks, int64_t group, const Rounded *x, int64_t apart, Ahead &ahead,
                    Floats (&sum)[N / DIGITS][TILES]) {
    Floats scale[TILES] = {};
    int64_t left = 0;
    for (int64_t block = 0; block < blocks; ++block, ++x, panel += PANEL * BLOCK * BITS / 8) {
        if (GROUPED && left == 0) {
            for (int t = 0; t < TILES; ++t) scale[t] = load_bf16(reinterpret_cast<const uint16_t *>(panel) + t * LANES);
            panel += PANEL * 2;
            left = group;
        }
        --left;
        for (int64_t line = 0; line < ahead.lines; ++line, ahead.at += 64) __builtin_prefetch(ahead.at, 0, 2);
        Ints dots[N][TILES];
        for (int n = 0; n < N; ++n)
            for (int t = 0; t < TILES; ++t) dots[n][t] = ints(row(x, apart, n).offset);
#pragma GCC unroll 8
        for (int step = 0; step < STEPS; ++step) {
            Codes c[TILES];
            for (int t = 0; t < TILES; ++t) {
                if (BITS == 8) {
                    c[t] = load(panel + (step * TILES + t) * 64);
                } else {
                    const Codes both = load(panel + (step / 2 * TILES + t) * 64);
                    c[t] = step % 2 ? high_halves(both) : low_halves(both);
                }
            }
            for (int n = 0; n < N; ++n) {
                int32_t four;
                memcpy(&four, row(x, apart, n).digits + 4 * step, 4);
                for (int t = 0; t < TILES; ++t)
                    dots[n][t] = BITS == 8 ? dot(dots[n][t], c[t], four) : dot_small(dots[n][t], c[t], four);
            }
        }
        for (int n = 0; n < N; n += DIGITS) {
            const int last = n + DIGITS - 1;
            for (int t = 0; t < TILES; ++t) {
                Floats part = floats(DIGITS == 1 ? dots[n][t] : number(dots[n][t], dots[last][t]));
                if (GROUPED) part = mul(part, scale[t]);
                sum[n / DIGITS][t] = mul_add(part, floats(row(x, apart, last).unit), sum[n / DIGITS][t]);
            }
        }
    }
}

// A panel times N rows.
template <int N, int BITS, bool GROUPED, int DIGITS>
void multiply(const Packed &m, int64_t panel, const Rounded *x, Ahead &ahead, float *out, int64_t stride) {
    constexpr int TOKENS = N / DIGITS;
    const uint8_t *from = m.panels + panel * m.panel_bytes();
    const float *scales = reinterpret_cast<const float *>(from);
    Floats sum[TOKENS][TILES];
    for (int n = 0; n < TOKENS; ++n)
        for (int t = 0; t < TILES; ++t) sum[n][t] = floats(0.f);
    product<N, BITS, GROUPED, DIGITS>(from + (GROUPED ? 0 : m.scale_bytes()), m.blocks(), m.group / BLOCK, x, m.row_bytes(), ahead, sum);
    for (int t = 0; t < TILES; ++t) {
        Floats scale = floats(1.f);
        if (!GROUPED) scale = load_floats(scales + t * LANES);
        for (int n = 0; n < TOKENS; ++n) store(out + n * stride + t * LANES, mul(sum[n][t], scale));
    }
}

using Multiply = void (*)(const Packed &, int64_t, const Rounded *, Ahead &, float *, int64_t);

constexpr int ROWS_AT_MOST = ROWS > PAIRED_ROWS ? ROWS : PAIRED_ROWS;

constexpr int most_rows(int64_t digits) { return digits == 1 ? ROWS : PAIRED_ROWS; }

template <int BITS, bool GROUPED, int DIGITS, int N = most_rows(DIGITS)> Multiply of_height(int64_t rows) {
    if constexpr (N > DIGITS)
        if (rows < N) return of_height<BITS, GROUPED, DIGITS, N - DIGITS>(rows);
    return multiply<N, BITS, GROUPED, DIGITS>;
}

template <int BITS, bool GROUPED> Multiply of_digits(const Packed &m, int64_t rows) {
    return m.digits == 1 ? of_height<BITS, GROUPED, 1>(rows) : of_height<BITS, GROUPED, 2>(rows);
}

Multiply kernel(const Packed &m, int64_t rows) {
    if (m.bits == 8) return of_digits<8, false>(m, rows);
    return m.group ? of_digits<4, true>(m, rows) : of_digits<4, false>(m, rows);
}

// --- as a Linear -----------------------------------------------------------------------------------------------------------

void prepare(const Linear *linear, const float *x, void *prepared) { round_token(static_cast<const Packed &>(*linear), x, prepared); }

// Tokens fall into tiles of nearly the same height. While several are multiplied by a panel, the next one comes nearer; a single
// one reads so straight on that asking would only be in the way.
void rows(const Linear *linear, const void *prepared, int64_t tokens, int64_t first, int64_t last, float *out, int64_t stride) {
    const Packed &m = static_cast<const Packed &>(*linear);
    const int64_t most = most_rows(m.digits) / m.digits, tiles = (tokens + most - 1) / most;
    const int64_t lines = tiles == 1 ? 0 : (m.block_bytes() / 64 + tiles - 1) / tiles;
    Ahead ahead{m.panels + (first / PANEL + 1) * m.panel_bytes(), lines};
    for (int64_t output = first; output < last; output += PANEL) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t token = tokens * tile / tiles, own = tokens * (tile + 1) / tiles - token;
            const void *x = static_cast<const char *>(prepared) + token * m.prepared_bytes;
            const auto times = [&](float *to, int64_t apart) {
                kernel(m, own * m.digits)(m, output / PANEL, static_cast<const Rounded *>(x), ahead, to, apart);
            };
            if (last - output >= PANEL) {
                times(out + token * stride + output - first, stride);
                continue;
            }
            alignas(64) float whole[ROWS_AT_MOST * PANEL];
            times(whole, PANEL);
            for (int64_t n = 0; n < own; ++n)
                memcpy(out + (token + n) * stride + output - first, whole + n * PANEL, 4 * (last - output));
        }
    }
}

} // namespace

EXPORT void *packed_new(int64_t outputs, int64_t inputs, int64_t group, int64_t bits, int64_t digits) {
    Packed *m = static_cast<Packed *>(calloc(1, sizeof(Packed)));
    if (!m) return nullptr;
    m->prepare = prepare;
    m->rows = rows;
    m->out_features = outputs;
    m->in_features = inputs;
    m->block = PANEL;
    m->group = group;
    m->bits = bits;
    m->digits = digits;
    m->prepared_bytes = digits * ((m->blocks() * int64_t(sizeof(Rounded)) + 63) / 64 * 64);
    return m;
}

EXPORT int64_t packed_bytes(const Packed *m) { return m->number() * m->panel_bytes(); }

// Lays out, in memory that stays, rows as a quantizer has them: signed bytes, or halves of which the even column's is the low one.
// `scales`: [outputs, groups] in bfloat16, or [outputs] in float32.
EXPORT void packed_arrange(Packed *address, const uint8_t *from, int64_t row_bytes, const char *scales, uint8_t *panels) {
    const Packed &m = *address;
    address->panels = panels;
    team::each(m.number(), [&](int64_t panel) {
        uint8_t *to = m.panels + panel * m.panel_bytes();
        const int64_t first = panel * PANEL, end = first + PANEL, size = m.group ? 2 : 4, group = m.group ? m.group : m.blocks() * BLOCK;
        const auto code = [&](int64_t row, int64_t column) -> uint32_t {
            if (row >= m.out_features || column >= m.in_features) return uint32_t(m.zero());
            const uint8_t *stored = from + row * row_bytes;
            return m.bits == 8 ? stored[column] ^ 128 : stored[column / 2] >> column % 2 * 4 & 15;
        };
        const auto four = [&](int64_t row, int64_t column) -> uint32_t { // codes, a byte each
            uint32_t codes = 0;
            if (row >= m.out_features || column + 4 > m.in_features) {
                for (int64_t i = 0; i < 4; ++i) codes |= code(row, column + i) << 8 * i;
                return codes;
            }
            const uint8_t *stored = from + row * row_bytes + column * m.bits / 8;
            if (m.bits == 8) {
                memcpy(&codes, stored, 4);
                return codes ^ 0x80808080;
            }
            memcpy(&codes, stored, 2);
            codes = (codes | codes << 8) & 0x00ff00ff;
            return (codes | codes << 4) & 0x0f0f0f0f;
        };
        for (int64_t start = 0; start < m.blocks() * BLOCK; start += 4) {
            if (start % group == 0)
                for (int64_t row = first; row < end; ++row, to += size) {
                    memset(to, 0, size);
                    if (row < m.out_features) memcpy(to, scales + (row * m.groups() + start / group) * size, size);
                }
            if (m.bits == 4 && start % 8) continue; // is with the four before
            for (int64_t row = first; row < end; ++row, to += 4) {
                const uint32_t codes = m.bits == 8 ? four(row, start) : four(row, start) | four(row, start + 4) << 4;
                memcpy(to, &codes, 4);
            }
        }
    });
}

EXPORT const char *packed_instructions() { return LANES_IN; }

#else

EXPORT const char *packed_instructions() { return ""; }

#endif
