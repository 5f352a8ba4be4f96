// Operations of a decoding step that PyTorch code calls one by one (cpu_ops.py); step.cpp has the whole step.

#include "decoding.h"

#define EXPORTED(T, format)                                                                                                 \
    void norm_##format(T* x, const T* delta, int64_t N, int64_t D, const T* weight, float eps, T* out, int threads) {      \
        norm<T>(x, delta, N, D, weight, eps, out, threads);                                                                       \
    }                                                                                                                      \
    void rotate_##format(const T* x, int64_t N, int64_t H, int64_t E, int64_t token_step, int64_t head_step,               \
                         const T* cosine, const T* sine, T* out, int threads) {                                            \
        rotate<T>(x, N, H, E, token_step, head_step, cosine, sine, out, threads);                                          \
    }                                                                                                                      \
    void gate_##format(const T* gate, int64_t gate_step, const T* up, int64_t up_step, int64_t N, int64_t D, T* out,       \
                       int threads) {                                                                                      \
        gated<T>(gate, gate_step, up, up_step, N, D, out, threads);                                                        \
    }                                                                                                                      \
    void choose_##format(const T* logits, int64_t N, int64_t V, const float* temperatures, const float* uniform, int64_t* token,   \
                         float* logprob, int threads) {                                                                    \
        choose<T>(logits, N, V, temperatures, uniform, token, logprob, threads);                                            \
    }

extern "C" {
EXPORTED(float, float32)
EXPORTED(uint16_t, bfloat16)
}
