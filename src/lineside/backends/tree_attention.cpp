// Attention of packed trees on a CPU, forward and backward, directly on the flat layout: nothing is gathered, padded or
// masked, and no matrix of scores is stored. Compiled at first use (cpu_ops.py).
//
// A token sees its ancestors and itself: i sees j if j <= i <= end[j], where `end[j]` is the last token of j's subtree.
// Neighbours with the same `end` form a run: a node, or a chain of nodes with one child each. So a run sees the runs
// above it and, causally, itself: a few contiguous pieces of the flat sequence. One task is one tree and one head. Its
// keys and values are converted to float32 once and stay in the cache while blocks of a few queries read them. Backward
// recomputes the probabilities from each row's log-sum-exp (FlashAttention-2, arXiv 2307.08691). No two tasks write to
// the same memory, so the result does not depend on the number of threads.

#include "vectors.h"

// c (R, cols) = a (R, E) b^T, where b is stored transposed, (E, ldb). Writes up to 2 W - 1 columns beyond `cols`.
template <int R>
static inline void products(const float* a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t cols, int64_t E) {
    for (int64_t j = 0; j < cols; j += 2 * W) {
        Vec sum[R][2] = {};
        for (int64_t e = 0; e < E; ++e) {
            Vec b0 = load(b + e * ldb + j), b1 = load(b + e * ldb + j + W);
            for (int r = 0; r < R; ++r) {
                float s = a[r * E + e];
                sum[r][0] += b0 * s;
                sum[r][1] += b1 * s;
            }
        }
        for (int r = 0; r < R; ++r) {
            store(c + r * ldc + j, sum[r][0]);
            store(c + r * ldc + j + W, sum[r][1]);
        }
    }
}

// y (len, E) += p^T (len, R) x (R, E)
template <int R>
static inline void spread(const float* p, int64_t ldp, const float* x, float* y, int64_t len, int64_t E) {
    for (int64_t e = 0; e < E; e += W) {
        Vec row[R];
        for (int r = 0; r < R; ++r) row[r] = load(x + r * E + e);
        for (int64_t t = 0; t < len; ++t) {
            Vec sum = load(y + t * E + e);
            for (int r = 0; r < R; ++r) sum += row[r] * p[r * ldp + t];
            store(y + t * E + e, sum);
        }
    }
}

// Contiguous tokens: index of the first one within the tree, their number, and the first column of their scores.
struct Piece {
    int64_t start, length, column;
};

struct Run : Piece {
    int64_t parent;             // index of the run above it, -1 for none
    std::vector<Piece> pieces;  // all runs above it
};

struct Tree {
    int64_t start, length, longest;  // first token, number of tokens, the most tokens that any of them sees
    std::vector<Run> runs;
};

static std::vector<Tree> trees_of(const int64_t* end, int64_t N) {
    std::vector<Tree> trees;
    for (int64_t i = 0; i < N;) {
        Tree tree{i, end[i] + 1 - i, 0, {}};
        int64_t open = -1;
        while (i < tree.start + tree.length) {
            const int64_t from = i;
            while (i < tree.start + tree.length && end[i] == end[from]) ++i;
            while (open >= 0 && end[tree.start + tree.runs[open].start] < from) open = tree.runs[open].parent;
            Run run{{from - tree.start, i - from, 0}, open, {}};
            if (open >= 0) {
                const Run& parent = tree.runs[open];
                run.pieces = parent.pieces;
                run.pieces.push_back(parent);
                run.column = parent.column + parent.length;
            }
            if (run.column + run.length > tree.longest) tree.longest = run.column + run.length;
            open = int64_t(tree.runs.size());
            tree.runs.push_back(std::move(run));
        }
        trees.push_back(std::move(tree));
    }
    return trees;
}

// The tokens and heads of a tensor, (N, heads, E) with steps of its own between tokens and between heads.
template <typename T>
struct Heads {
    T* data;
    int64_t token, head;
    T* at(int64_t i, int64_t h) const { return data + i * token + h * head; }
};

struct Shape {
    int64_t N, H, K, E, padded;  // tokens, query heads, key heads, head width, head width padded to whole registers
    float scale;
};

template <typename T>
static void widened(Heads<const T> from, const Tree& tree, int64_t head, const Shape& s, float factor, float* to) {
    for (int64_t i = 0; i < tree.length; ++i) widened(from.at(tree.start + i, head), s.E, factor, to + i * s.padded);
}

static void transposed(const float* from, int64_t rows, int64_t columns, int64_t ld, float* to) {
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t e = 0; e < columns; ++e)
            for (int64_t k = i; k < rows && k < i + W; ++k) to[e * ld + k] = from[k * columns + e];
}

// Buffers of a thread. They are reused from task to task and only grow. Every task writes what it reads.
struct Space {
    std::vector<float> q, k, v, k_across, v_across, p, dp, out, dq, dk, dv, given;
    int64_t across, scores;
    static void grow(std::vector<float>& buffer, int64_t size) {
        if (int64_t(buffer.size()) < size) buffer.resize(size);
    }
    void fit(const Tree& tree, const Shape& s, bool backward) {
        across = rounded(tree.length), scores = rounded(tree.longest) + 2 * W;
        const int64_t plain = tree.length * s.padded, turned = across * s.padded + 2 * W;
        for (auto* buffer : {&q, &k, &v}) grow(*buffer, plain);
        grow(p, scores * ROWS), grow(out, s.padded * ROWS), grow(k_across, turned);
        if (!backward) return;
        grow(dp, scores * ROWS), grow(dq, s.padded * ROWS);
        for (auto* buffer : {&given, &dk, &dv}) grow(*buffer, plain);
        grow(v_across, turned);
        std::memset(dk.data(), 0, sizeof(float) * plain);
        std::memset(dv.data(), 0, sizeof(float) * plain);
    }
};
static thread_local Space space_of_thread;

// Products of R rows with all tokens that they see, which `across` holds transposed: the runs above, and the run itself
// up to the last row.
template <int R>
static void scored(const float* rows, const std::vector<float>& across, const Run& run, int64_t seen, const Space& space,
                   const Shape& s, std::vector<float>& out) {
    auto with = [&](const Piece& piece, int64_t length) {
        products<R>(rows, across.data() + piece.start, space.across, out.data() + piece.column, space.scores, length,
                    s.padded);
    };
    for (const auto& piece : run.pieces) with(piece, piece.length);
    with(run, seen);
}

template <typename T, int R>
static void forward_block(const Tree& tree, const Run& run, int64_t first, int64_t head, Space& space, const Shape& s,
                          T* out, float* lse) {
    const float* q = space.q.data() + (run.start + first) * s.padded;
    const int64_t seen = first + R;  // tokens of the run itself that the last row sees
    scored<R>(q, space.k_across, run, seen, space, s, space.p);
    float total[R];
    for (int r = 0; r < R; ++r) {
        float* p = space.p.data() + r * space.scores;
        const int64_t sees = run.column + first + r + 1;
        float most;
        total[r] = weighed(p, sees, most);
        for (int64_t j = rounded(sees); j < run.column + seen; ++j) p[j] = 0;
        lse[(tree.start + run.start + first + r) * s.H + head] = most + std::log(total[r]);
    }
    std::memset(space.out.data(), 0, sizeof(float) * R * s.padded);
    auto add = [&](const Piece& piece, int64_t length) {
        mixed<R>(space.p.data() + piece.column, space.scores, space.v.data() + piece.start * s.padded, length,
                 space.out.data(), s.padded);
    };
    for (const auto& piece : run.pieces) add(piece, piece.length);
    add(run, seen);
    for (int r = 0; r < R; ++r) {
        T* row = out + ((tree.start + run.start + first + r) * s.H + head) * s.E;
        narrowed(space.out.data() + r * s.padded, s.E, 1 / total[r], row);
    }
}

template <typename T, int R>
static void backward_block(const Tree& tree, const Run& run, int64_t first, int64_t head, Space& space, const Shape& s,
                           const T* out, const float* lse, T* dq) {
    const float* q = space.q.data() + (run.start + first) * s.padded;
    const float* given = space.given.data() + (run.start + first) * s.padded;
    const int64_t seen = first + R;
    scored<R>(q, space.k_across, run, seen, space, s, space.p);
    scored<R>(given, space.v_across, run, seen, space, s, space.dp);
    for (int r = 0; r < R; ++r) {
        const int64_t token = tree.start + run.start + first + r, sees = run.column + first + r + 1;
        float *p = space.p.data() + r * space.scores, *dp = space.dp.data() + r * space.scores;
        const float norm = lse[token * s.H + head];
        float* row = space.out.data();
        widened(out + (token * s.H + head) * s.E, s.E, 1, row);
        Vec products = {};
        for (int64_t e = 0; e < s.padded; e += W) products += load(row + e) * load(given + r * s.padded + e);
        const float mean = sum_of(products);  // sum_j p_j dp_j, which equals the output times its gradient
        for (int64_t j = 0; j < sees; j += W) {
            const Vec x = load(p + j) - norm;
            Vec share = exponential(x < 0.0f ? x : x * 0.0f);
            Vec through = share * (load(dp + j) - mean);
            if (j + W > sees) share = head_of(share, sees - j), through = head_of(through, sees - j);
            store(p + j, share);
            store(dp + j, through);
        }
        for (int64_t j = rounded(sees); j < run.column + seen; ++j) p[j] = dp[j] = 0;
    }
    std::memset(space.dq.data(), 0, sizeof(float) * R * s.padded);
    auto through = [&](const Piece& piece, int64_t length) {
        const float *p = space.p.data() + piece.column, *dp = space.dp.data() + piece.column;
        const int64_t place = piece.start * s.padded;
        mixed<R>(dp, space.scores, space.k.data() + place, length, space.dq.data(), s.padded);
        spread<R>(dp, space.scores, q, space.dk.data() + place, length, s.padded);
        spread<R>(p, space.scores, given, space.dv.data() + place, length, s.padded);
    };
    for (const auto& piece : run.pieces) through(piece, piece.length);
    through(run, seen);
    for (int r = 0; r < R; ++r) {
        T* row = dq + ((tree.start + run.start + first + r) * s.H + head) * s.E;
        narrowed(space.dq.data() + r * s.padded, s.E, s.scale, row);
    }
}

// Entry points. `sizes` are N, H, K and E. `in` are query, key and value, and in backward also the gradient of the
// output. `steps` are the strides of tokens and of heads of each tensor of `in`.
template <typename T>
static void forward(const int64_t* sizes, float scale, const int64_t* end, const T* const* in, const int64_t* steps, T* out,
                    float* lse, int threads) {
    const Shape s{sizes[0], sizes[1], sizes[2], sizes[3], rounded(sizes[3]), scale};
    const Heads<const T> q{in[0], steps[0], steps[1]}, k{in[1], steps[2], steps[3]}, v{in[2], steps[4], steps[5]};
    const auto trees = trees_of(end, s.N);
    const int64_t tasks = int64_t(trees.size()) * s.H;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) {
        const Tree& tree = trees[task / s.H];
        const int64_t head = task % s.H, key_head = head / (s.H / s.K);
        Space& space = space_of_thread;
        space.fit(tree, s, false);
        widened(q, tree, head, s, s.scale, space.q.data());
        widened(k, tree, key_head, s, 1, space.k.data());
        widened(v, tree, key_head, s, 1, space.v.data());
        transposed(space.k.data(), tree.length, s.padded, space.across, space.k_across.data());
        for (const auto& run : tree.runs)
            in_blocks(run.length, [&](auto rows, int64_t first) {
                forward_block<T, rows.value>(tree, run, first, head, space, s, out, lse);
            });
    }
}

template <typename T>
static void backward(const int64_t* sizes, float scale, const int64_t* end, const T* const* in, const int64_t* steps,
                     const T* out, const float* lse, T* const* into, int threads) {
    const Shape s{sizes[0], sizes[1], sizes[2], sizes[3], rounded(sizes[3]), scale};
    const Heads<const T> q{in[0], steps[0], steps[1]}, k{in[1], steps[2], steps[3]}, v{in[2], steps[4], steps[5]},
        given{in[3], steps[6], steps[7]};
    T *dq = into[0], *dk = into[1], *dv = into[2];
    const auto trees = trees_of(end, s.N);
    const int64_t tasks = int64_t(trees.size()) * s.K, each = s.H / s.K;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) {
        const Tree& tree = trees[task / s.K];
        const int64_t key_head = task % s.K;
        Space& space = space_of_thread;
        space.fit(tree, s, true);
        widened(k, tree, key_head, s, 1, space.k.data());
        widened(v, tree, key_head, s, 1, space.v.data());
        transposed(space.k.data(), tree.length, s.padded, space.across, space.k_across.data());
        transposed(space.v.data(), tree.length, s.padded, space.across, space.v_across.data());
        for (int64_t head = key_head * each; head < (key_head + 1) * each; ++head) {
            widened(q, tree, head, s, s.scale, space.q.data());
            widened(given, tree, head, s, 1, space.given.data());
            for (const auto& run : tree.runs)
                in_blocks(run.length, [&](auto rows, int64_t first) {
                    backward_block<T, rows.value>(tree, run, first, head, space, s, out, lse, dq);
                });
        }
        for (int64_t i = 0; i < tree.length; ++i) {
            const int64_t place = ((tree.start + i) * s.K + key_head) * s.E;
            narrowed(space.dk.data() + i * s.padded, s.E, 1, dk + place);
            narrowed(space.dv.data() + i * s.padded, s.E, 1, dv + place);
        }
    }
}

extern "C" {
void forward_float32(const int64_t* sizes, float scale, const int64_t* end, const float* const* in, const int64_t* steps,
                     float* out, float* lse, int threads) {
    forward<float>(sizes, scale, end, in, steps, out, lse, threads);
}
void forward_bfloat16(const int64_t* sizes, float scale, const int64_t* end, const uint16_t* const* in,
                      const int64_t* steps, uint16_t* out, float* lse, int threads) {
    forward<uint16_t>(sizes, scale, end, in, steps, out, lse, threads);
}
void backward_float32(const int64_t* sizes, float scale, const int64_t* end, const float* const* in,
                      const int64_t* steps, const float* out, const float* lse, float* const* gradients, int threads) {
    backward<float>(sizes, scale, end, in, steps, out, lse, gradients, threads);
}
void backward_bfloat16(const int64_t* sizes, float scale, const int64_t* end, const uint16_t* const* in,
                       const int64_t* steps, const uint16_t* out, const float* lse, uint16_t* const* gradients,
                       int threads) {
    backward<uint16_t>(sizes, scale, end, in, steps, out, lse, gradients, threads);
}
}
