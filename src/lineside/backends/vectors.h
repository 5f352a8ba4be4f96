// Shared by the kernels: vector registers of float32, conversion from and to bfloat16, exp, softmax.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 8;  // floats in a register; queries in a block
#else
constexpr int W = 8, ROWS = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(4 * W), may_alias));
typedef uint16_t Half __attribute__((vector_size(2 * W), aligned(2), may_alias));  // bfloat16

static inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
static inline Vec load(const uint16_t* p) {
    return (Vec)(__builtin_convertvector(*reinterpret_cast<const Half*>(p), Bits) << 16);
}
static inline void store(uint16_t* p, Vec v) {  // rounds to nearest, ties to even
    const Bits bits = (Bits)v;
    *reinterpret_cast<Half*>(p) = __builtin_convertvector(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff, Half);
}
static inline int64_t rounded(int64_t n) { return (n + W - 1) / W * W; }

// `widened` converts a row of E numbers to float32, padded with zeros to whole registers. `narrowed` converts it back.
template <typename T>
static inline void widened(const T* from, int64_t E, float factor, float* to) {
    int64_t e = 0;
    for (; e + W <= E; e += W) store(to + e, load(from + e) * factor);
    if (e == E) return;
    T rest[W] = {};
    std::memcpy(rest, from + e, (E - e) * sizeof(T));
    store(to + e, load(rest) * factor);
}
template <typename T>
static inline void narrowed(const float* from, int64_t E, float factor, T* to) {
    int64_t e = 0;
    for (; e + W <= E; e += W) store(to + e, load(from + e) * factor);
    if (e == E) return;
    T rest[W];
    store(rest, load(from + e) * factor);
    std::memcpy(to + e, rest, (E - e) * sizeof(T));
}

static inline float sum_of(Vec v) {
    float sum = 0;
    for (int i = 0; i < W; ++i) sum += v[i];
    return sum;
}
static inline float largest_of(Vec v) {
    float top = v[0];
    for (int i = 1; i < W; ++i) top = v[i] > top ? v[i] : top;
    return top;
}

// exp(x) for x <= 0 with a relative error of 2e-7: 2^n times a polynomial on [-0.35, 0.35].
static inline Vec exponential(Vec x) {
    x = x < -87.0f ? x * 0.0f - 87.0f : x;
    const Bits n = __builtin_convertvector(x * 1.44269504f - 0.5f, Bits);  // rounds towards zero, here to the nearest
    const Vec whole = __builtin_convertvector(n, Vec);
    const Vec f = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec p = f * (1.0f / 5040) + 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    return p * (Vec)((n + 127) << 23);
}

// The same, but exactly 0 where x < -87, such as for a banned token.
static inline Vec share_of(Vec x) { return x < -87.0f ? Vec{} : exponential(x); }

// The first `count` numbers of a register, then zeros.
static inline Vec head_of(Vec v, int64_t count) {
    Bits place;
    for (int i = 0; i < W; ++i) place[i] = i;
    return place < int32_t(count) ? v : Vec{};
}

// Replaces the first `count` scores of a row by exp(score - most), where `most` is the largest of them, and fills the
// last register with zeros. Returns the sum.
static inline float weighed(float* p, int64_t count, float& most) {
    Vec top = load(p);  // only whole registers of scores are compared here, so no number behind them can be the largest
    for (int64_t j = 0; j + W <= count; j += W) {
        const Vec x = load(p + j);
        top = x > top ? x : top;
    }
    most = count < W ? p[0] : largest_of(top);
    for (int64_t j = count / W * W; j < count; ++j) most = p[j] > most ? p[j] : most;
    Vec sum = {};
    for (int64_t j = 0; j < count; j += W) {
        Vec x = exponential(load(p + j) - most);
        if (j + W > count) x = head_of(x, count - j);
        store(p + j, x);
        sum += x;
    }
    return sum_of(sum);
}

// o (R, E) += p (R, len) v (len, E)
template <int R, int B, typename T>
static inline int64_t mix_columns(const float* p, int64_t ldp, const T* v, int64_t len, float* o, int64_t e, int64_t E) {
    for (; e + B * W <= E; e += B * W) {
        Vec sum[R][B];
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < B; ++i) sum[r][i] = load(o + r * E + e + i * W);
        for (int64_t t = 0; t < len; ++t)
            for (int i = 0; i < B; ++i) {
                const Vec x = load(v + t * E + e + i * W);
                for (int r = 0; r < R; ++r) sum[r][i] += x * p[r * ldp + t];
            }
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < B; ++i) store(o + r * E + e + i * W, sum[r][i]);
    }
    return e;
}
template <int R, typename T>
static inline void mixed(const float* p, int64_t ldp, const T* v, int64_t len, float* o, int64_t E) {
    const int64_t e = mix_columns<R, R <= 4 ? 4 : 2>(p, ldp, v, len, o, 0, E);
    mix_columns<R, 1>(p, ldp, v, len, o, e, E);
}

// A row of V logits times `factor` as float32, padded with -inf to whole registers, in a buffer of the thread.
template <typename T>
static std::vector<float>& row_of(const T* logits, int64_t V, float factor) {
    static thread_local std::vector<float> row;
    row.resize(rounded(V));
    widened(logits, V, factor, row.data());
    for (int64_t v = V; v < rounded(V); ++v) row[v] = -std::numeric_limits<float>::infinity();
    return row;
}
// The largest number of such a row.
static inline float top_of(const std::vector<float>& row) {
    Vec tops = load(row.data());
    for (size_t v = W; v < row.size(); v += W) {
        const Vec x = load(row.data() + v);
        tops = x > tops ? x : tops;
    }
    return largest_of(tops);
}

// Calls block(R, first) for blocks of R rows, where R is ROWS and, for the last block, what is left.
template <typename Block>
static void in_blocks(int64_t rows, Block block) {
    int64_t first = 0;
    for (; first + ROWS <= rows; first += ROWS) block(std::integral_constant<int, ROWS>(), first);
    switch (rows - first) {
        case 1: return block(std::integral_constant<int, 1>(), first);
        case 2: return block(std::integral_constant<int, 2>(), first);
        case 3: return block(std::integral_constant<int, 3>(), first);
#if defined(__AVX512F__)
        case 4: return block(std::integral_constant<int, 4>(), first);
        case 5: return block(std::integral_constant<int, 5>(), first);
        case 6: return block(std::integral_constant<int, 6>(), first);
        case 7: return block(std::integral_constant<int, 7>(), first);
#endif
    }
}
