// The operations of a decoding step on a CPU besides its products with weights: attention of one new token a row, norm,
// rotary positions, gate, choice of a token. `T` is the format of the numbers, `S` that of the KV cache.
//
// Keys are stored transposed, in tiles of 16 tokens: (tiles, E, 16). A register holds one dimension of many tokens, so
// scores are sums of whole registers over E, and a tile is read sequentially. Values are stored as (tokens, E). E is
// padded with zeros to a multiple of 16. All sums are float32.

#pragma once
#include <algorithm>
#include <vector>

#include "vectors.h"

constexpr int64_t TILE = 16;

// c (R, cols) = a (R, E) b^T, with b in tiles. R x B sums run in parallel, so that no addition waits for the last.
// Writes whole registers.
template <int R, int B, typename T>
static inline int64_t product_tiles(const float* a, const T* b, float* c, int64_t ldc, int64_t j, int64_t cols, int64_t E) {
    for (; j + (B - 1) * W < cols; j += B * W) {
        Vec sum[R][B] = {};
        const T* at[B];
        for (int i = 0; i < B; ++i) at[i] = b + (j + i * W) / TILE * TILE * E + (j + i * W) % TILE;
        for (int64_t e = 0; e < E; ++e)
            for (int i = 0; i < B; ++i) {
                const Vec x = load(at[i] + e * TILE);
                for (int r = 0; r < R; ++r) sum[r][i] += x * a[r * E + e];
            }
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < B; ++i) store(c + r * ldc + j + i * W, sum[r][i]);
    }
    return j;
}
template <int R, typename T>
static inline void products(const float* a, const T* b, float* c, int64_t ldc, int64_t cols, int64_t E) {
    const int64_t j = product_tiles<R, R <= 4 ? 4 : 2>(a, b, c, ldc, 0, cols, E);
    product_tiles<R, 1>(a, b, c, ldc, product_tiles<R, 2>(a, b, c, ldc, j, cols, E), cols, E);
}

// `rows` rows; H query and K key heads of width E (`padded` to a multiple of 16); buffers for P tokens of a prefix and T of
// a row's own, both multiples of 16.
struct Sizes {
    int64_t rows, H, K, E, padded, P, T;
};

// Numbers in another format, or the same.
template <typename T>
static inline void copied(const T* from, int64_t count, T* to) { std::memcpy(to, from, count * sizeof(T)); }
static inline void copied(const float* from, int64_t count, uint16_t* to) { narrowed(from, count, 1, to); }
static inline void copied(const uint16_t* from, int64_t count, float* to) { widened(from, count, 1, to); }  // whole registers

// A row has the prefix `group[row]` and its own tokens in buffer `slot[row]`; no slot is used twice. Rows of one group
// follow each other. The buffers hold `prefix_length[group]` and `own_length[slot]` tokens. The new token is appended to the
// row's own tokens and attends to itself too. `steps` are the strides of rows and heads of query, key and value.
template <typename T, typename S>
static void attend(const Sizes& s, float scale, const T* query, const T* key, const T* value, const int64_t* steps,
                   const S* prefix_keys, const S* prefix_values, const int64_t* prefix_length, S* own_keys, S* own_values,
                   const int64_t* own_length, const int64_t* group, const int64_t* slot, T* out, int threads) {
    constexpr int64_t CHUNK = 8;  // most rows of a task; they read the prefix of their group together
    std::vector<int64_t> first;   // the first row of each run of rows that are a task
    for (int64_t row = 0; row < s.rows; ++row)
        if (!row || group[row] != group[row - 1] || row == first.back() + CHUNK) first.push_back(row);
    first.push_back(s.rows);
    const int64_t each = s.H / s.K, tasks = (int64_t(first.size()) - 1) * s.K;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t k = task % s.K, begin = first[task / s.K], g = group[begin];
        const int64_t rows = first[task / s.K + 1] - begin, queries = rows * each, before = prefix_length[g];
        static thread_local std::vector<float> q, p, o, shares;
        const int64_t width = s.P + s.T + 2 * TILE;
        for (auto* zeros : {&q, &o}) zeros->assign(queries * s.padded, 0.0f);
        static thread_local std::vector<S> line;
        p.resize(queries * width), shares.resize(queries), line.resize(s.padded);
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t row = begin + r, buffer = slot[row] * s.K + k, at = own_length[slot[row]];
            for (int64_t h = 0; h < each; ++h)
                widened(query + row * steps[0] + (k * each + h) * steps[1], s.E, scale, q.data() + (r * each + h) * s.padded);
            S* across = own_keys + (buffer * s.T + at / TILE * TILE) * s.padded + at % TILE;
            copied(key + row * steps[2] + k * steps[3], s.E, line.data());
            for (int64_t e = 0; e < s.E; ++e) across[e * TILE] = line[e];
            copied(value + row * steps[4] + k * steps[5], s.E, own_values + (buffer * s.T + at) * s.padded);
        }
        const S *keys = prefix_keys + (g * s.K + k) * s.P * s.padded, *values = prefix_values + (g * s.K + k) * s.P * s.padded;
        in_blocks(queries, [&](auto R, int64_t i) {
            products<R.value>(q.data() + i * s.padded, keys, p.data() + i * width, width, before, s.padded);
        });
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = slot[begin + r], own = own_length[at] + 1, place = (at * s.K + k) * s.T * s.padded;
            in_blocks(each, [&](auto R, int64_t h) {
                const int64_t i = r * each + h;
                products<R.value>(q.data() + i * s.padded, own_keys + place, p.data() + i * width + before, width, own, s.padded);
            });
            for (int64_t i = r * each; i < (r + 1) * each; ++i) {
                float most;
                shares[i] = 1 / weighed(p.data() + i * width, before + own, most);
            }
            in_blocks(each, [&](auto R, int64_t h) {
                const int64_t i = r * each + h;
                mixed<R.value>(p.data() + i * width + before, width, own_values + place, own, o.data() + i * s.padded, s.padded);
            });
        }
        in_blocks(queries, [&](auto R, int64_t i) {
            mixed<R.value>(p.data() + i * width, width, values, before, o.data() + i * s.padded, s.padded);
        });
        for (int64_t i = 0; i < queries; ++i)
            narrowed(o.data() + i * s.padded, s.E, shares[i], out + ((begin + i / each) * s.H + k * each + i % each) * s.E);
    }
}

// The numbers rounded to T.
static inline Vec rounded_to(Vec x, const float*) { return x; }
static inline Vec rounded_to(Vec x, const uint16_t*) {
    uint16_t as[W];
    store(as, x);
    return load(as);
}

// RMS norm of (N, D): a row divided by its root mean square, rounded to T, times the weight. If there is a `delta`, it is
// first added to x in place.
template <typename T>
static void norm(T* x, const T* delta, int64_t N, int64_t D, const T* weight, float eps, T* out, int threads) {
    const int64_t padded = rounded(D);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < N; ++i) {
        static thread_local std::vector<float> row, by;
        row.resize(padded), by.resize(padded);
        widened(x + i * D, D, 1, row.data());
        if (delta) {
            widened(delta + i * D, D, 1, by.data());
            for (int64_t d = 0; d < padded; d += W)
                store(row.data() + d, rounded_to(load(row.data() + d) + load(by.data() + d), x));
            narrowed(row.data(), D, 1, x + i * D);
        }
        widened(weight, D, 1, by.data());
        Vec squares = {};
        for (int64_t d = 0; d < padded; d += W) squares += load(row.data() + d) * load(row.data() + d);
        const float factor = 1 / std::sqrt(sum_of(squares) / D + eps);
        for (int64_t d = 0; d < padded; d += W)
            store(row.data() + d, rounded_to(load(row.data() + d) * factor, x) * load(by.data() + d));
        narrowed(row.data(), D, 1, out + i * D);
    }
}

// Rotary positions: dimensions i and i + E/2 of each head are rotated as a pair. x is (N, H, E) with the given strides of
// tokens and heads; cosine and sine are (N, E).
template <typename T>
static void rotate(const T* x, int64_t N, int64_t H, int64_t E, int64_t token_step, int64_t head_step, const T* cosine,
                   const T* sine, T* out, int threads) {
    const int64_t half = E / 2, padded = rounded(half);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < N; ++i) {
        static thread_local std::vector<float> buffer;
        buffer.resize(7 * padded);
        float *c0 = buffer.data(), *c1 = c0 + padded, *s0 = c1 + padded, *s1 = s0 + padded, *a = s1 + padded, *b = a + padded,
              *turned = b + padded;
        widened(cosine + i * E, half, 1, c0), widened(cosine + i * E + half, half, 1, c1);
        widened(sine + i * E, half, 1, s0), widened(sine + i * E + half, half, 1, s1);
        for (int64_t h = 0; h < H; ++h) {
            const T* from = x + i * token_step + h * head_step;
            T* to = out + (i * H + h) * E;
            widened(from, half, 1, a), widened(from + half, half, 1, b);
            for (int64_t e = 0; e < padded; e += W) store(turned + e, load(a + e) * load(c0 + e) - load(b + e) * load(s0 + e));
            narrowed(turned, half, 1, to);
            for (int64_t e = 0; e < padded; e += W) store(turned + e, load(b + e) * load(c1 + e) + load(a + e) * load(s1 + e));
            narrowed(turned, half, 1, to + half);
        }
    }
}

static inline Vec silu(Vec x) {
    const Vec e = exponential(x < 0.0f ? x : -x);
    return x * (x < 0.0f ? e : e * 0.0f + 1.0f) / (e + 1.0f);
}

// silu(gate) * up, both (N, D) with the given strides of rows.
template <typename T>
static void gated(const T* gate, int64_t gate_step, const T* up, int64_t up_step, int64_t N, int64_t D, T* out, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < N; ++i) {
        const T *a = gate + i * gate_step, *b = up + i * up_step;
        int64_t d = 0;
        for (; d + W <= D; d += W) store(out + i * D + d, rounded_to(silu(load(a + d)), a) * load(b + d));
        if (d == D) continue;
        float rest[2 * W] = {};
        widened(a + d, D - d, 1, rest), widened(b + d, D - d, 1, rest + W);
        store(rest, rounded_to(silu(load(rest)), a) * load(rest + W));
        narrowed(rest, D - d, 1, out + i * D + d);
    }
}

// One token for each row of (N, V) logits, and its log-probability. At temperature 0 it is the most likely token, the
// first if several are equal. Otherwise it is the first whose cumulative probability exceeds the row's `uniform`.
template <typename T>
static void choose(const T* logits, int64_t N, int64_t V, const float* temperatures, const float* uniform, int64_t* token,
                   float* logprob, int threads) {
    constexpr int64_t BLOCK = 1024;
    const int64_t padded = rounded(V), blocks = (padded + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < N; ++i) {
        const float temperature = temperatures[i], factor = temperature > 0 ? 1 / temperature : 1;
        static thread_local std::vector<double> sums;
        sums.assign(blocks, 0.0);
        const auto& row = row_of(logits + i * V, V, factor);
        const float top = top_of(row);
        double total = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            Vec sum = {};
            for (int64_t v = block * BLOCK; v < std::min((block + 1) * BLOCK, padded); v += W)
                sum += share_of(load(row.data() + v) - top);
            total += sums[block] = sum_of(sum);
        }
        int64_t chosen = V;
        if (temperature > 0) {
            double left = uniform[i] * total;
            int64_t block = 0;
            while (block + 1 < blocks && sums[block] <= left) left -= sums[block++];
            for (chosen = block * BLOCK; chosen < V; ++chosen) {
                const float x = row[chosen] - top;
                left -= x < -87.0f ? 0.0f : std::exp(x);
                if (left < 0) break;
            }
        }
        if (chosen == V) chosen = std::find(row.begin(), row.begin() + V, top) - row.begin();
        if (chosen == V) chosen = V - 1;  // all logits are NaN: any valid token
        token[i] = chosen;
        logprob[i] = float(row[chosen] - top - std::log(total));
    }
}
