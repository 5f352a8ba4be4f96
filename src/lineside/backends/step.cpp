// One decoding step of a Llama- or Qwen-type decoder in one call: embeddings, layers, head, choice of the next token, for
// the rows of one or of several trees (cpu_decoder.py). `T` is the format of the numbers, `S` that of the model: of its
// embeddings and of the KV cache. They differ with int8 weights and with a LoRA: all other numbers are then float32.
//
// Products in float32 and int8 are those of products.h. In bfloat16 they are PyTorch's (which has AMX), by its C interface
// for compiled models (AOTInductor's shim.h), whose functions are given here as addresses.

#include "decoding.h"
#include "products.h"

typedef void* Handle;  // an at::Tensor
struct Torch {
    int32_t (*wrap)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, Handle*);
    int32_t (*address)(Handle, void**);
    int32_t (*free)(Handle);
    int32_t (*packed)(Handle, Handle, Handle*, const char*, const double**, int64_t, const char**, Handle*);
    int32_t (*product)(Handle, Handle, Handle);
    int32_t (*product_added)(Handle, Handle, Handle, Handle, double, double);
};

// A linear layer. In float32 and int8 it has `blocks` and a bias `added`. In bfloat16 `weight` and `bias` are PyTorch's;
// `packed` says whether the weight (out, in) is oneDNN's, and if not, it is transposed, (in, out).
struct Linear {
    int64_t in, out;
    const float* blocks;
    Int8 quantised;
    const float* added;
    Handle weight, bias;
    int64_t packed;
};
template <typename T>
struct Layer {
    const T *before, *q_norm, *k_norm, *between;
    Linear qkv, out, gate_up, down;
};
template <typename T, typename S>
struct Model {
    int64_t layers, D, H, K, E, padded, F, V, banned;
    float scale, eps;
    const Layer<T>* layer;
    const T* norm;
    Linear head;
    const S* embeddings;          // (V, D)
    const T *cosine, *sine;       // (positions, E)
    Torch torch;
};

// The KV cache of one tree (decoding.h has the layout). The arrays of keys and values have an address for each layer.
template <typename S>
struct Cache {
    int64_t rows, P, T;
    const int64_t *prefix_length, *own_length, *group, *slot;
    const S *const *prefix_keys, *const *prefix_values;
    S *const *own_keys, *const *own_values;
};

// What is asked of a step, and what it gives, for `rows` rows. With `hidden` (rows, D) it gives their logits alone.
template <typename T, typename S>
struct Step {
    int64_t rows, padded, caches;  // padded: rows, rounded up: products take so many, the last of them zeros
    const Cache<S>* cache;
    const int64_t *tokens, *positions;
    const T* hidden;
    const float *temperature, *uniform;
    int64_t* chosen;
    float* logprob;
    T* logits;  // (padded, V)
};

static inline void ban(float& logit) { logit = -std::numeric_limits<float>::infinity(); }
static inline void ban(uint16_t& logit) { logit = 0xff80; }  // -inf

// y (N, out) = the linear layer of x (N, in). Returns 0, or an error of PyTorch.
static int32_t run(const Torch&, const Linear& l, const float* x, int64_t N, float* y, int threads) {
    if (l.quantised.weight)
        product(x, N, l.in, l.out, l.quantised, l.added, y, threads);
    else
        product(x, N, l.in, l.out, l.blocks, l.added, y, threads);
    return 0;
}
static int32_t run(const Torch& torch, const Linear& l, const uint16_t* x, int64_t N, uint16_t* y, int) {
    constexpr int32_t BFLOAT16 = 15, CPU = 0;  // PyTorch's numbers
    const auto wrapped = [&](const uint16_t* data, int64_t width, Handle* to) {
        const int64_t sizes[] = {N, width}, strides[] = {width, 1};
        return torch.wrap(const_cast<uint16_t*>(data), 2, sizes, strides, 0, BFLOAT16, CPU, -1, to);
    };
    Handle input = nullptr, output = nullptr;
    int32_t error = wrapped(x, l.in, &input);
    if (!error && l.packed) {
        Handle bias = l.bias;
        const char *none = "none", *algorithm = "";
        void* from = nullptr;
        error = torch.packed(input, l.weight, bias ? &bias : nullptr, none, nullptr, 0, &algorithm, &output);
        if (!error) error = torch.address(output, &from);
        if (!error) std::memcpy(y, from, N * l.out * sizeof(uint16_t));
    } else if (!error) {
        error = wrapped(y, l.out, &output);
        if (!error)
            error = l.bias ? torch.product_added(output, l.bias, input, l.weight, 1, 1)
                           : torch.product(output, input, l.weight);
    }
    if (input) torch.free(input);
    if (output) torch.free(output);
    return error;
}

// What a step computes before its logits, in one buffer of the thread: (N, width) each.
template <typename T>
struct Room {
    T *x, *normed, *delta, *mixed, *rotated, *seen, *gate_up, *inner, *cosine, *sine;
};
template <typename T, typename S>
static Room<T> room_of(const Model<T, S>& m, int64_t N) {
    constexpr int64_t LINE = 64 / sizeof(T);  // the matrix library may round otherwise where memory begins elsewhere
    static thread_local std::vector<T> buffer;
    Room<T> room;
    const int64_t turned = (m.H + m.K) * m.E;
    const std::pair<T**, int64_t> parts[] = {
        {&room.x, m.D}, {&room.normed, m.D}, {&room.delta, m.D}, {&room.mixed, turned + m.K * m.E}, {&room.rotated, turned},
        {&room.seen, m.H * m.E}, {&room.gate_up, 2 * m.F}, {&room.inner, m.F}, {&room.cosine, m.E}, {&room.sine, m.E}};
    const auto lines = [&](int64_t width) { return (N * width + 2 * W) / LINE * LINE + LINE; };  // and a register more
    int64_t need = LINE;
    for (const auto& part : parts) need += lines(part.second);
    if (int64_t(buffer.size()) < need) buffer.resize(need);
    T* at = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64);
    for (const auto& part : parts) *part.first = at, at += lines(part.second);
    return room;
}

// The hidden states after the final norm, into `normed`. Returns 0, or an error of PyTorch.
template <typename T, typename S>
static int32_t through_layers(const Model<T, S>& m, const Step<T, S>& s, const Room<T>& o, int threads) {
    const int64_t N = s.padded, heads = (m.H + 2 * m.K) * m.E, turned = (m.H + m.K) * m.E;  // widths of `mixed`, `rotated`
    const auto linear = [&](const Linear& l, const T* from, T* to) { return run(m.torch, l, from, N, to, threads); };
    std::fill(o.x, o.x + N * m.D, T());
    for (int64_t i = 0; i < N; ++i) {
        const int64_t place = i < s.rows ? s.positions[i] : 0;
        if (i < s.rows) copied(m.embeddings + s.tokens[i] * m.D, m.D, o.x + i * m.D);
        std::memcpy(o.cosine + i * m.E, m.cosine + place * m.E, m.E * sizeof(T));
        std::memcpy(o.sine + i * m.E, m.sine + place * m.E, m.E * sizeof(T));
    }
    for (int64_t index = 0; index < m.layers; ++index) {
        const Layer<T>& layer = m.layer[index];
        norm<T>(o.x, index ? o.delta : nullptr, N, m.D, layer.before, m.eps, o.normed, threads);
        if (const int32_t error = linear(layer.qkv, o.normed, o.mixed)) return error;
        if (layer.q_norm)
            for (int64_t i = 0; i < N; ++i) {
                T *const query = o.mixed + i * heads, *const key = query + m.H * m.E;
                norm<T>(query, nullptr, m.H, m.E, layer.q_norm, m.eps, query, 1);
                norm<T>(key, nullptr, m.K, m.E, layer.k_norm, m.eps, key, 1);
            }
        rotate(o.mixed, N, m.H + m.K, m.E, heads, m.E, o.cosine, o.sine, o.rotated, threads);
        std::fill(o.seen, o.seen + N * m.H * m.E, T());
        int64_t first = 0;
        for (int64_t c = 0; c < s.caches; first += s.cache[c++].rows) {
            const Cache<S>& cache = s.cache[c];
            const Sizes sizes = {cache.rows, m.H, m.K, m.E, m.padded, cache.P, cache.T};
            const int64_t steps[] = {turned, m.E, turned, m.E, heads, m.E};
            const T *const query = o.rotated + first * turned, *const value = o.mixed + first * heads + turned;
            attend(sizes, m.scale, query, query + m.H * m.E, value, steps, cache.prefix_keys[index],
                   cache.prefix_values[index], cache.prefix_length, cache.own_keys[index], cache.own_values[index],
                   cache.own_length, cache.group, cache.slot, o.seen + first * m.H * m.E, threads);
        }
        if (const int32_t error = linear(layer.out, o.seen, o.delta)) return error;
        norm<T>(o.x, o.delta, N, m.D, layer.between, m.eps, o.normed, threads);
        if (const int32_t error = linear(layer.gate_up, o.normed, o.gate_up)) return error;
        gated(o.gate_up, 2 * m.F, o.gate_up + m.F, 2 * m.F, N, m.F, o.inner, threads);
        if (const int32_t error = linear(layer.down, o.inner, o.delta)) return error;
    }
    norm<T>(o.x, o.delta, N, m.D, m.norm, m.eps, o.normed, threads);
    return 0;
}

// Returns 0, or an error of PyTorch.
template <typename T, typename S>
static int32_t step(const Model<T, S>& m, const Step<T, S>& s, int threads) {
    const Room<T> room = room_of(m, s.padded);
    if (s.hidden) {
        std::memcpy(room.normed, s.hidden, s.rows * m.D * sizeof(T));
        std::fill(room.normed + s.rows * m.D, room.normed + s.padded * m.D, T());
    } else if (const int32_t error = through_layers(m, s, room, threads)) {
        return error;
    }
    if (const int32_t error = run(m.torch, m.head, room.normed, s.padded, s.logits, threads)) return error;
    for (int64_t i = 0; i < s.rows; ++i) ban(s.logits[i * m.V + m.banned]);
    if (s.chosen) choose(s.logits, s.rows, m.V, s.temperature, s.uniform, s.chosen, s.logprob, threads);
    return 0;
}

extern "C" {
int32_t step_float32(const Model<float, float>* m, const Step<float, float>* s, int threads) { return step(*m, *s, threads); }
int32_t step_bfloat16(const Model<uint16_t, uint16_t>* m, const Step<uint16_t, uint16_t>* s, int threads) {
    return step(*m, *s, threads);
}
int32_t wide_step_bfloat16(const Model<float, uint16_t>* m, const Step<float, uint16_t>* s, int threads) {
    return step(*m, *s, threads);
}
void quantise_float32(const float* from, int64_t out, int64_t in, int8_t* weight, float* scale, int32_t* sums, int threads) {
    laid_out(from, out, in, weight, scale, sums, threads);
}
void int8_product_float32(const float* x, int64_t N, int64_t in, int64_t out, const int8_t* weight, const float* scale,
                          const int32_t* sums, const float* bias, float* y, int threads) {
    product(x, N, in, out, {weight, scale, sums}, bias, y, threads);
}
}
