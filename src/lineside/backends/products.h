// Products of a few rows with weights that are laid out in blocks of 64 output channels, in float32 and in int8. A row
// gets the same numbers beside any others.
//
// float32: (out / 64, in, 64). Each sum runs over the inputs in their order.
//
// int8: each output channel of the weight has a scale, and each row of the input gets one when it is used (dynamic
// quantisation, after arXiv 2208.07339). Products and sums are integers, so every path below gives the same. Weights are
// stored by groups of 4 inputs: (out / 64, in / 4, 64, 4). Inputs are unsigned bytes, 128 higher, since that is what the
// processor multiplies with signed ones; `sums` (of a channel's weights) takes the 128 off again.

#pragma once
#include <algorithm>
#include <vector>

#include "vectors.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr int64_t BLOCK = 64, GROUP = 4;

// Calls block(R, first) for blocks of R rows: 6, whose sums fit into the registers, and for the last block what is left.
template <typename Block>
static inline void in_sixes(int64_t rows, Block block) {
    int64_t first = 0;
    for (; first + 6 <= rows; first += 6) block(std::integral_constant<int, 6>(), first);
    switch (rows - first) {
        case 1: return block(std::integral_constant<int, 1>(), first);
        case 2: return block(std::integral_constant<int, 2>(), first);
        case 3: return block(std::integral_constant<int, 3>(), first);
        case 4: return block(std::integral_constant<int, 4>(), first);
        case 5: return block(std::integral_constant<int, 5>(), first);
    }
}

// y (R, count) = x (R, in) times a block of the weight, plus the bias.
template <int R>
static inline void block_product(const float* x, int64_t in, const float* w, const float* bias, float* y, int64_t out,
                                 int64_t count) {
    constexpr int B = W == 16 ? 4 : 2;  // registers of output channels at once
    for (int64_t first = 0; first < count; first += B * W) {
        Vec sum[R][B] = {};
        for (int64_t e = 0; e < in; ++e)
            for (int i = 0; i < B; ++i) {
                const Vec part = load(w + e * BLOCK + first + i * W);
                for (int r = 0; r < R; ++r) sum[r][i] += part * x[r * in + e];
            }
        for (int r = 0; r < R; ++r) {
            float line[B * W];
            for (int i = 0; i < B; ++i) store(line + i * W, sum[r][i]);
            const int64_t here = std::min<int64_t>(B * W, count - first);
            for (int64_t c = 0; c < here; ++c) y[r * out + first + c] = line[c] + (bias ? bias[first + c] : 0.0f);
        }
    }
}

// y (N, out) = x (N, in) times the weight, plus the bias.
static void product(const float* x, int64_t N, int64_t in, int64_t out, const float* weight, const float* bias, float* y,
                    int threads) {
    const int64_t blocks = (out + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * BLOCK, count = std::min(BLOCK, out - first);
        in_sixes(N, [&](auto R, int64_t i) {
            block_product<R.value>(x + i * in, in, weight + first * in, bias ? bias + first : nullptr, y + i * out + first, out,
                                   count);
        });
    }
}

struct Int8 {
    const int8_t* weight;
    const float* scale;   // (out)
    const int32_t* sums;  // (out)
};

// (N, in) inputs -> bytes (N, in padded to whole groups) and the scale of each row.
static inline int64_t groups_of(int64_t in) { return (in + GROUP - 1) / GROUP; }
static inline void quantised(const float* x, int64_t in, uint8_t* bytes, float& scale) {
    Vec tops = {};
    int64_t e = 0;
    for (; e + W <= in; e += W) {
        const Vec v = load(x + e), a = v < 0.0f ? -v : v;
        tops = a > tops ? a : tops;
    }
    float top = largest_of(tops);
    for (; e < in; ++e) top = std::max(top, std::fabs(x[e]));
    scale = top / 127.0f;
    const float factor = top > 0 ? 127.0f / top : 0.0f;
    for (e = 0; e + W <= in; e += W) {  // rounds half away from zero
        const Vec v = load(x + e) * factor;
        const Bits whole = __builtin_convertvector(v < 0.0f ? v - 0.5f : v + 0.5f, Bits) + 128;
        typedef uint8_t Bytes __attribute__((vector_size(W), aligned(1), may_alias));
        *reinterpret_cast<Bytes*>(bytes + e) = __builtin_convertvector(whole, Bytes);
    }
    for (; e < in; ++e) bytes[e] = uint8_t(int32_t(x[e] * factor + (x[e] < 0 ? -0.5f : 0.5f)) + 128);
    for (; e < groups_of(in) * GROUP; ++e) bytes[e] = 128;
}

// sums (R, 64) = inputs (R, in) times a block of the weight.
#if defined(__AVX512VNNI__) && !defined(PORTABLE)
template <int R>
static inline void block_sums(const uint8_t* x, int64_t step, const int8_t* w, int64_t groups, int32_t (*sums)[BLOCK]) {
    __m512i acc[R][4];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; ++g, w += BLOCK * GROUP) {
        __m512i part[4];
        for (int i = 0; i < 4; ++i) part[i] = _mm512_loadu_si512(w + i * 64);
        for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, x + r * step + g * GROUP, GROUP);
            const __m512i input = _mm512_set1_epi32(four);
            for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], input, part[i]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < 4; ++i) _mm512_storeu_si512(sums[r] + i * 16, acc[r][i]);
}
#elif defined(__AVX2__) && !defined(PORTABLE)
template <int R>
static inline void block_sums(const uint8_t* x, int64_t step, const int8_t* w, int64_t groups, int32_t (*sums)[BLOCK]) {
    for (int64_t first = 0; first < BLOCK; first += 16) {  // as 16-bit numbers: products of bytes would saturate
        __m256i acc[R][4];
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < 4; ++i) acc[r][i] = _mm256_setzero_si256();
        for (int64_t g = 0; g < groups; ++g) {
            __m256i part[4];
            for (int i = 0; i < 4; ++i) {
                const void* at = w + (g * BLOCK + first + i * 4) * GROUP;
                part[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(at)));
            }
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, x + r * step + g * GROUP, GROUP);
                const __m256i input = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
                for (int i = 0; i < 4; ++i) acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(input, part[i]));
            }
        }
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < 4; ++i) {
                int32_t pairs[8];
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs), acc[r][i]);
                for (int c = 0; c < 4; ++c) sums[r][first + i * 4 + c] = pairs[2 * c] + pairs[2 * c + 1];
            }
    }
}
#else
template <int R>
static inline void block_sums(const uint8_t* x, int64_t step, const int8_t* w, int64_t groups, int32_t (*sums)[BLOCK]) {
    for (int r = 0; r < R; ++r) std::memset(sums[r], 0, sizeof sums[r]);
    for (int64_t g = 0; g < groups; ++g, w += BLOCK * GROUP)
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < BLOCK; ++c)
                for (int i = 0; i < GROUP; ++i) sums[r][c] += int32_t(x[r * step + g * GROUP + i]) * w[c * GROUP + i];
}
#endif

// y (N, out) = x (N, in) times the weight, plus the bias.
static void product(const float* x, int64_t N, int64_t in, int64_t out, const Int8& weight, const float* bias, float* y,
                    int threads) {
    static thread_local std::vector<uint8_t> bytes;
    static thread_local std::vector<float> scales;
    const int64_t groups = groups_of(in), step = groups * GROUP, blocks = (out + BLOCK - 1) / BLOCK;
    bytes.resize(N * step), scales.resize(N);
    uint8_t* const all = bytes.data();
    float* const by = scales.data();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t i = 0; i < N; ++i) quantised(x + i * in, in, all + i * step, by[i]);
#pragma omp for
        for (int64_t block = 0; block < blocks; ++block) {
            const int8_t* w = weight.weight + block * groups * BLOCK * GROUP;
            const int64_t first = block * BLOCK, count = std::min(BLOCK, out - first);
            in_sixes(N, [&](auto R, int64_t i) {
                int32_t sums[R.value][BLOCK];
                block_sums<R.value>(all + i * step, step, w, groups, sums);
                for (int r = 0; r < R.value; ++r)
                    for (int64_t c = 0; c < count; ++c) {
                        const float exact = float(sums[r][c] - 128 * weight.sums[first + c]);
                        y[(i + r) * out + first + c] =
                            exact * (by[i + r] * weight.scale[first + c]) + (bias ? bias[first + c] : 0.0f);
                    }
            });
        }
    }
}

// A (out, in) weight in float32 -> its int8 layout: `weight` has room for whole blocks and groups.
static void laid_out(const float* from, int64_t out, int64_t in, int8_t* weight, float* scale, int32_t* sums, int threads) {
    const int64_t groups = groups_of(in), blocks = (out + BLOCK - 1) / BLOCK;
    std::memset(weight, 0, blocks * BLOCK * groups * GROUP);
#pragma omp parallel for num_threads(threads)
    for (int64_t o = 0; o < out; ++o) {
        std::vector<uint8_t> bytes(groups * GROUP);
        quantised(from + o * in, in, bytes.data(), scale[o]);
        int8_t* to = weight + (o / BLOCK * groups * BLOCK + o % BLOCK) * GROUP;
        sums[o] = 0;
        for (int64_t e = 0; e < in; ++e) {
            const int8_t value = int8_t(int32_t(bytes[e]) - 128);
            to[e / GROUP * BLOCK * GROUP + e % GROUP] = value;
            sums[o] += value;
        }
    }
}
