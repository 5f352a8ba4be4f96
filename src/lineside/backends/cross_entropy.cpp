// Log-probabilities of given tokens under rows of logits, forward and backward. Each direction reads the logits once and
// stores neither a float32 copy nor the probabilities. Compiled at first use (cpu_ops.py).

#include <algorithm>

#include "vectors.h"

// A row with -inf for the `banned` token, in the thread's buffer.
template <typename T>
static const std::vector<float>& row_without(int64_t banned, const T* logits, int64_t V, float factor) {
    auto& row = row_of(logits, V, factor);
    row[banned] = -std::numeric_limits<float>::infinity();
    return row;
}

// For each of M rows: log-probability of the target, log-sum-exp, entropy.
template <typename T>
static void forward(const T* logits, int64_t M, int64_t V, float factor, int64_t banned, const int64_t* target,
                    float* logprob, float* lse, float* entropy, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < M; ++i) {
        const auto& row = row_without(banned, logits + i * V, V, factor);
        const float top = top_of(row);
        double total = 0, mean = 0;  // each float32 sum covers only a few registers, so little precision is lost
        for (int64_t v = 0; v < rounded(V);) {
            Vec sum = {}, product = {};
            for (const int64_t until = v + 64 * W; v < until && v < rounded(V); v += W) {
                const Vec x = load(row.data() + v) - top, share = share_of(x);
                sum += share;
                product += x < -87.0f ? Vec{} : share * x;
            }
            total += sum_of(sum), mean += sum_of(product);
        }
        lse[i] = float(top + std::log(total));
        logprob[i] = row[target[i]] - lse[i];
        entropy[i] = float(std::log(total) - mean / total);
    }
}

// Gradient of the logits from that of the log-probabilities: given * factor * ((1 at the target, else 0) - probability).
template <typename T>
static void backward(const T* logits, int64_t M, int64_t V, float factor, int64_t banned, const int64_t* target,
                     const float* lse, const float* given, T* out, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < M; ++i) {
        const auto& row = row_without(banned, logits + i * V, V, factor);
        const float scale = given[i] * factor;
        T* to = out + i * V;
        const auto through = [&](int64_t v) {
            const Vec x = load(row.data() + v) - lse[i];
            return share_of(x < 0.0f ? x : Vec{}) * -scale;
        };
        int64_t v = 0;
        for (; v + W <= V; v += W) store(to + v, through(v));
        if (v < V) {
            float rest[W];
            store(rest, through(v));
            narrowed(rest, V - v, 1, to + v);
        }
        const int64_t block = target[i] / W * W;
        float around[W];
        store(around, through(block));
        around[target[i] - block] += scale;
        narrowed(around, std::min<int64_t>(W, V - block), 1, to + block);
    }
}

#define EXPORTED(T, format)                                                                                                 \
    void logprobs_##format(const T* logits, int64_t M, int64_t V, float factor, int64_t banned, const int64_t* target,     \
                           float* logprob, float* lse, float* entropy, int threads) {                                      \
        forward<T>(logits, M, V, factor, banned, target, logprob, lse, entropy, threads);                                  \
    }                                                                                                                      \
    void logits_gradient_##format(const T* logits, int64_t M, int64_t V, float factor, int64_t banned,                     \
                                  const int64_t* target, const float* lse, const float* given, T* out, int threads) {      \
        backward<T>(logits, M, V, factor, banned, target, lse, given, out, threads);                                       \
    }

extern "C" {
EXPORTED(float, float32)
EXPORTED(uint16_t, bfloat16)
}
