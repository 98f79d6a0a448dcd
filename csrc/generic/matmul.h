// C = op(A) op(B). One rule fixes every bit: an element of C is a chain of FMAs over k = 0, 1, ... in blocks of KC, block sums added in
// order; in bfloat16 the chain is of dots of pairs k = (0, 1), (2, 3), ... Tiles, packing, threads and the number of rows are free to
// change; they never change that chain.
//
// Bound: FMA, if memory is read meanwhile: after some milliseconds of other work the operands are no longer in the caches. A tile of R x NV
// registers keeps both pipes busy; a thread packs a block of B's columns for itself, so that it lies in its L2, while its first rows of A
// are multiplied, and takes it to the others; A is read where it lies, or packed too where it lies transposed or is to be rounded.

constexpr index_t KC = 768;
constexpr int R_MAX = W == 16 ? 8 : 4;
#if defined(__aarch64__)
constexpr int NV_MAX = 4;  // 32 registers of 4 floats: 16 sums keep four pipes busy
#else
constexpr int NV_MAX = W == 4 ? 2 : 3;
#endif
constexpr index_t BLOCK = 192;            // columns of a block: BLOCK * KC lanes stay in L2
constexpr index_t PACKED_A = 1 << 21;     // lanes of A that are packed at a time
constexpr index_t K_STEP = 32;            // rows of a transposed A that are packed at a time
constexpr index_t FETCH = 32;             // lanes of B between a fetch and its use: longer than memory takes
constexpr index_t TASK = 2000000;         // multiply-adds of a part of the rows, at least: tens of microseconds
constexpr index_t SMALL = 130000;         // multiply-adds that one thread does in a microsecond
constexpr index_t SKINNY = 8;             // rows up to which B is read where it lies

// ---- lanes ----
// What a 32-bit lane of an operand in registers or packed memory holds: DEPTH neighbours along k.
struct Float32 {
    static constexpr index_t DEPTH = 1;
    static constexpr bool ROUNDS = false;  // or lanes are what memory holds
    INLINE V along(const float* p, index_t n) { return load_n(p, n); }                     // p[0, n) are neighbours along k
    INLINE V across(const float* p, const float*, index_t n) { return load_n(p, n); }      // lane i < n: p[i] (and q[i], next along k)
    INLINE V every(const float* lane) { return splat(*lane); }
    INLINE V mul_add(V a, V b, V c) { return a * b + c; }
};

typedef int32_t LaneMem __attribute__((may_alias));

struct BFloat16 {
    static constexpr bool ROUNDS = true;
#ifdef PYLLM_DOT
    static constexpr index_t DEPTH = 2;
    INLINE V along(const float* p, index_t n) {
        const V first = load_n(p, std::min<index_t>(n, W)), second = n > W ? load_n(p + W, n - W) : V{};
        return V(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
    }
    INLINE V across(const float* p, const float* q, index_t n) { return V(bf16_pair(load_n(p, n), q ? load_n(q, n) : V{})); }
    INLINE V every(const float* lane) { return as_float(VI{} | *reinterpret_cast<const LaneMem*>(lane)); }
    INLINE V mul_add(V a, V b, V c) { return bf16_dot(c, VU(a), VU(b)); }
#else  // rounded floats: their FMAs in order are what bf16_dot does without the instruction
    static constexpr index_t DEPTH = 1;
    INLINE V rounded(V x) { return bf16_first(to_bf16(x)); }
    INLINE V along(const float* p, index_t n) { return rounded(load_n(p, n)); }
    INLINE V across(const float* p, const float*, index_t n) { return rounded(load_n(p, n)); }
    INLINE V every(const float* lane) { return splat(*lane); }
    INLINE V mul_add(V a, V b, V c) { return a * b + c; }
#endif
};

// ---- register transpose ----
template <int S, int... I>
INLINE V lower(V a, V b, std::integer_sequence<int, I...>) { return __builtin_shufflevector(a, b, ((I & S) ? W + I - S : I)...); }
template <int S, int... I>
INLINE V upper(V a, V b, std::integer_sequence<int, I...>) { return __builtin_shufflevector(a, b, ((I & S) ? W + I : I + S)...); }

template <int S, int END = W>
INLINE void transpose_step(V (&x)[W]) {
    if constexpr (S < END) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            if (i & S) continue;
            const V a = x[i], b = x[i + S];
            x[i] = lower<S>(a, b, std::make_integer_sequence<int, W>());
            x[i + S] = upper<S>(a, b, std::make_integer_sequence<int, W>());
        }
        transpose_step<2 * S, END>(x);
    }
}

// x[i] lane j  <->  x[j] lane i
INLINE void transpose(V (&x)[W]) { transpose_step<1>(x); }

// The same for W rows in memory, `step` apart: loads of halves do the last exchange.
typedef float HalfMem __attribute__((vector_size(W * 2), aligned(4), may_alias));
template <int... I>
INLINE V halves(const float* a, const float* b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(*reinterpret_cast<const HalfMem*>(a), *reinterpret_cast<const HalfMem*>(b), I...);
}
INLINE void load_transposed(const float* src, index_t step, V (&x)[W]) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        const float* p = src + i % (W / 2) * step + i / (W / 2) * (W / 2);
        x[i] = halves(p, p + W / 2 * step, std::make_integer_sequence<int, W>());
    }
    transpose_step<1, W / 2>(x);
}

// ---- packing ----
// W x W lanes, rows `step` apart, turned: x[k] lane i = lane k of src + i * step, which holds n elements; what is beyond rows or n is 0.
template <class T = Float32>
INLINE void load_turned(const float* src, index_t step, index_t rows, V (&x)[W], index_t n = T::DEPTH * W) {
    if (!T::ROUNDS && rows >= W && n == W) return load_transposed(src, step, x);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = i < rows ? T::along(src + i * step, n) : V{};
    transpose(x);
}

INLINE index_t lanes_of(index_t k, index_t depth) { return (k + depth - 1) / depth; }

// B's panel: lane dst[k / DEPTH * width + j] = src[k * k_step + j * j_step], ... for k < kc, j < cols; zero for cols <= j < width, a
// multiple of W. One of the steps is 1.
template <class T = Float32>
static void pack_panel(const float* src, index_t k_step, index_t j_step, index_t kc, index_t cols, index_t width, float* dst) {
    constexpr index_t D = T::DEPTH;
    if (j_step == 1) {
        for (index_t k = 0; k < kc; k += D, src += D * k_step, dst += width)
            for (index_t j = 0; j < width; j += W) {
                const float* next = k + 1 < kc ? src + k_step + j : nullptr;
                store(dst + j, j < cols ? T::across(src + j, next, std::min<index_t>(W, cols - j)) : V{});
            }
        return;
    }
    for (index_t j = 0; j < width; j += W) {
        index_t k = 0;
        V x[W];
        for (; k + D * W <= kc; k += D * W) {
            load_turned<T>(src + j * j_step + k, j_step, cols - j, x);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) store(dst + (k / D + i) * width + j, x[i]);
        }
        if (k == kc) continue;
        load_turned<T>(src + j * j_step + k, j_step, cols - j, x, kc - k);
        for (index_t i = 0; i < lanes_of(kc - k, D); ++i) store(dst + (k / D + i) * width + j, x[i]);
    }
}

// A's rows as they are, k along memory: lane dst[i * lanes + k / DEPTH] = src[i * row_step + k], ...
template <class T>
static void pack_rows(const float* src, index_t row_step, index_t rows, index_t kc, float* dst) {
    const index_t lanes = lanes_of(kc, T::DEPTH);
    for (index_t i = 0; i < rows; ++i, src += row_step, dst += lanes)
        each_vector(lanes, [&](index_t at, index_t n) {
            store_n(dst + at, T::along(src + at * T::DEPTH, std::min(T::DEPTH * n, kc - at * T::DEPTH)), n);
        });
}

// A transposed in memory, as panels of R_MAX rows: lane dst[(i / R_MAX * lanes + k / DEPTH) * R_MAX + i % R_MAX] = src[i + k * k_step],
// ...; zero beyond rows.
template <class T>
static void pack_turned_rows(const float* src, index_t k_step, index_t rows, index_t kc, float* dst) {
    constexpr index_t R = R_MAX;
    const index_t lanes = lanes_of(kc, T::DEPTH);
    for (index_t k0 = 0; k0 < lanes; k0 += K_STEP)
        for (index_t i = 0; i < rows; i += W)
            for (index_t k = k0; k < std::min(lanes, k0 + K_STEP); ++k) {
                const float* from = src + i + k * T::DEPTH * k_step;
                const V x = T::across(from, k * T::DEPTH + 1 < kc ? from + k_step : nullptr, std::min<index_t>(W, rows - i));
                for (index_t q = 0; q < W && i + q < rows; q += R)
                    std::memcpy(dst + ((i + q) / R * lanes + k) * R, reinterpret_cast<const float*>(&x) + q, R * sizeof(float));
            }
}

// ---- the tile ----
// C[R, cols] (+)= A[R, kc] B[kc, NV * W], kc lanes. A(r, k) = a[r * a_row + k * a_col]; B rows are b_row apart.
// PACK: B's rows are not lanes yet but n rows of floats; they are fetched ahead, and what they give is left in `packed`, so that memory is
// read while the tile computes.
template <int R, int NV, class T, bool PACK = false>
static void tile(const float* a, index_t a_row, index_t a_col, const float* b, index_t b_row, index_t kc, float* c, index_t c_row,
                 index_t cols, bool add, float* packed = nullptr, index_t n = 0) {
    V acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = V{};
    for (index_t k = 0; k < kc; ++k) {
        V bv[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            if constexpr (PACK) {
                const float *from = b + v * W, *next = k * T::DEPTH + 1 < n ? from + b_row : nullptr;
                bv[v] = T::across(from, next, W);
                store(packed + (k * NV + v) * W, bv[v]);
                if (k + FETCH < kc)
                    for (index_t i = 0; i < T::DEPTH; ++i) __builtin_prefetch(from + (FETCH * T::DEPTH + i) * b_row, 0, 2);
            } else {
                bv[v] = load(b + v * W);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const V ar = T::every(a + r * a_row);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] = T::mul_add(ar, bv[v], acc[r][v]);
        }
        a += a_col;
        b += b_row;
        if constexpr (PACK) b += (T::DEPTH - 1) * b_row;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, c += c_row)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            const index_t left = cols - v * W;
            if (left >= W) {
                store(c + v * W, add ? load(c + v * W) + acc[r][v] : acc[r][v]);
            } else if (left > 0) {
                store_n(c + v * W, add ? load_n(c + v * W, left) + acc[r][v] : acc[r][v], left);
            }
        }
}

template <int R, class T>
static void tile_of_width(int nv, const float* a, index_t a_row, index_t a_col, const float* b, index_t b_row, index_t kc, float* c,
                          index_t c_row, index_t cols, bool add) {
    if (nv == 1) tile<R, 1, T>(a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
    if (nv == 2) tile<R, 2, T>(a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
    if constexpr (NV_MAX >= 3)
        if (nv == 3) tile<R, 3, T>(a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
    if constexpr (NV_MAX >= 4)
        if (nv == 4) tile<R, 4, T>(a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
}

// `rows` of 1, 2, 4 or 8.
template <class T = Float32>
static void tile_of_rows(int rows, int nv, const float* a, index_t a_row, index_t a_col, const float* b, index_t b_row, index_t kc,
                         float* c, index_t c_row, index_t cols, bool add) {
    if (rows == 1) tile_of_width<1, T>(nv, a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
    if (rows == 2) tile_of_width<2, T>(nv, a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
    if (rows == 4) tile_of_width<4, T>(nv, a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
    if constexpr (R_MAX >= 8)
        if (rows == 8) tile_of_width<8, T>(nv, a, a_row, a_col, b, b_row, kc, c, c_row, cols, add);
}

INLINE int rows_at(index_t left) {
    int rows = R_MAX;
    while (rows > left) rows /= 2;
    return rows;
}

// Columns [0, n) as panels of at most NV_MAX vectors, as even as they come.
struct Panels {
    index_t vectors, count;
    explicit Panels(index_t n) : vectors((n + W - 1) / W), count((vectors + NV_MAX - 1) / NV_MAX) {}
    index_t begin(index_t p) const { return p * vectors / count * W; }
    int width(index_t p) const { return int((p + 1) * vectors / count - p * vectors / count); }
};

// Fetches rows into L2 piece by piece, beside work that does not need them yet.
struct Ahead {
    const float *row, *end;
    index_t step, width, at = 0, lines;  // at: of the row; lines of a piece
    Ahead(const float* from, index_t step, index_t rows, index_t width, index_t pieces)
        : row(from), end(width ? from + rows * step : from), step(step), width(width), lines(rows * ((width + 15) / 16) / pieces + 1) {}
    void fetch() {
        for (index_t i = 0; i < lines && row < end; ++i) {
            __builtin_prefetch(row + at, 0, 2);
            if ((at += 16) >= width) row += step, at = 0;
        }
    }
};

// ---- epilogue ----
// C[rows, cols] holds sums: bias, activation, residual.
template <Activation A>
static void finish_with(const MatmulArgs& g, index_t row, index_t rows, index_t col, index_t cols) {
    for (index_t i = row; i < row + rows; ++i) {
        const index_t at = i * g.c_row + col;
        each_vector(cols, [&](index_t j, index_t n) {
            V x = load_n(g.c + at + j, n);
            if (g.bias) x = x + load_n(g.bias + col + j, n);
            if (g.z) store_n(g.z + at + j, x, n);
            x = activate<A>(x).y;
            if (g.residual) x = x + load_n(g.residual + at + j, n);
            store_n(g.c + at + j, x, n);
        });
    }
}

static void finish(const MatmulArgs& g, index_t row, index_t rows, index_t col, index_t cols) {
    choose(g.act, [&](auto a) { finish_with<decltype(a)::value>(g, row, rows, col, cols); });
}

INLINE bool has_epilogue(const MatmulArgs& g) { return g.bias || g.z || g.act != kNone || g.residual; }

// ---- few rows ----
// C[M, cols] of columns col, ..., W at most: B lies transposed (w of a linear layer) and is turned in registers, so it is read once.
// A(r, k) = lane g.a[r * g.a_row + k * g.a_col].
// ahead: the next W columns, or null. They are fetched meanwhile, in the order in which they lie: the W streams of short rows that are
// read here are more than the CPU foresees.
template <int M, class T = Float32>
static void skinny_columns(const MatmulArgs& g, index_t col, index_t cols, const float* ahead = nullptr) {
    constexpr index_t D = T::DEPTH;
    V total[M] = {};
    for (index_t k0 = 0; k0 < g.k; k0 += KC) {
        const index_t kc = std::min(KC, g.k - k0);
        const float* a = g.a + k0 / D * g.a_col;
        const float* b = g.b + col * g.b_col + k0;
        V acc[M], x[W];
        for (int r = 0; r < M; ++r) acc[r] = V{};
        index_t k = 0;
        for (; k + D * W <= kc; k += D * W) {
            load_turned<T>(b + k, g.b_col, cols, x);
            if (ahead)
#pragma GCC unroll 32
                for (int i = 0; i < D * W; ++i) __builtin_prefetch(ahead + (k0 + k + i) * W, 0, 2);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
#pragma GCC unroll 8
                for (int r = 0; r < M; ++r) acc[r] = T::mul_add(T::every(a + r * g.a_row + (k / D + i) * g.a_col), x[i], acc[r]);
        }
        if (k < kc) {
            load_turned<T>(b + k, g.b_col, cols, x, kc - k);
            for (index_t i = 0; i < lanes_of(kc - k, D); ++i)
                for (int r = 0; r < M; ++r) acc[r] = T::mul_add(T::every(a + r * g.a_row + (k / D + i) * g.a_col), x[i], acc[r]);
        }
        for (int r = 0; r < M; ++r) total[r] = k0 ? total[r] + acc[r] : acc[r];
    }
    for (int r = 0; r < M; ++r) {
        float* c = g.c + r * g.c_row + col;
        store_n(c, g.accumulate ? load_n(c, cols) + total[r] : total[r], cols);
    }
    if (has_epilogue(g)) finish(g, 0, M, col, cols);
}

template <class T>
static void skinny(MatmulArgs g) {
    if (T::ROUNDS) {
        const index_t lanes = lanes_of(g.k, T::DEPTH);
        float* packed = static_cast<float*>(scratch(0, sizeof(float) * g.m * lanes));
        for (index_t i = 0; i < g.m; ++i) {
            if (g.a_col == 1) pack_rows<T>(g.a + i * g.a_row, 0, 1, g.k, packed + i * lanes);
            else for (index_t k = 0; k < lanes; ++k) {
                const float* from = g.a + i * g.a_row + k * T::DEPTH * g.a_col;
                packed[i * lanes + k] = T::across(from, k * T::DEPTH + 1 < g.k ? from + g.a_col : nullptr, 1)[0];
            }
        }
        g.a = packed, g.a_row = lanes, g.a_col = 1;
    }
    const index_t grain = thread_limit() == 1 ? g.n + 1 : std::min<index_t>(256, (g.n / 12 / W + 1) * W);
    parallel_ranges(g.n, grain, [&](index_t begin, index_t end) {
        for (index_t col = begin; col < end; col += W) {
            const index_t cols = std::min<index_t>(W, end - col);
            const float* ahead = col + 2 * W <= end && g.b_col == g.k ? g.b + (col + W) * g.b_col : nullptr;
            if (g.m <= 2) g.m == 1 ? skinny_columns<1, T>(g, col, cols, ahead) : skinny_columns<2, T>(g, col, cols, ahead);
            else if (g.m <= 4) g.m == 3 ? skinny_columns<3, T>(g, col, cols, ahead) : skinny_columns<4, T>(g, col, cols, ahead);
            else if (g.m <= 6) g.m == 5 ? skinny_columns<5, T>(g, col, cols, ahead) : skinny_columns<6, T>(g, col, cols, ahead);
            else g.m == 7 ? skinny_columns<7, T>(g, col, cols, ahead) : skinny_columns<8, T>(g, col, cols, ahead);
        }
    });
}

// ---- the product ----
struct Left {  // some rows of A, one K block of them: where they lie, or packed
    const float* a;
    index_t row, col;  // where row is 1: panels of R_MAX rows
    const float* from(index_t i, index_t lanes) const { return row == 1 ? a + i / R_MAX * R_MAX * lanes + i % R_MAX : a + i * row; }
};

INLINE index_t tiles_of(index_t rows, const Panels& panels) { return panels.count * ((rows + R_MAX - 1) / R_MAX); }

// C[rows, panels] (+)= A B, kc deep; `next` is fetched meanwhile. b: B packed, or, where `from` stands, yet to be packed from the rows
// there. far: C is not in L2, nor is `z`, which is to be written behind it, or null.
template <class T>
static void multiply(const Left& a, index_t rows, float* b, index_t kc, const Panels& panels, float* c, index_t c_row, index_t columns,
                     bool add, bool far, const float* z, const float* from, index_t b_row, Ahead next) {
    const index_t lanes = lanes_of(kc, T::DEPTH);
    for (index_t i = 0, r; i < rows; i += r) {
        r = rows_at(rows - i);
        for (index_t p = 0; p < panels.count; ++p) {
            const index_t col = panels.begin(p), width = panels.width(p) * W, cols = columns - col;
            float *to = c + i * c_row + col, *panel = b + col * lanes;
            for (index_t row = 0; far && row < r; ++row)  // comes while the tile computes
                for (index_t j = 0; j < width; j += 16) {
                    __builtin_prefetch(to + row * c_row + j, 1);
                    if (z) __builtin_prefetch(z + (i + row) * c_row + col + j, 1);
                }
            next.fetch();
            if (from && i == 0) {
                if (r == R_MAX && width == NV_MAX * W && cols >= width) {
                    tile<R_MAX, NV_MAX, T, true>(a.from(i, lanes), a.row, a.col, from + col, b_row, lanes, to, c_row, cols, add, panel, kc);
                    continue;
                }
                pack_panel<T>(from + col, b_row, 1, kc, std::min(width, cols), width, panel);
            }
            tile_of_rows<T>(int(r), int(width / W), a.from(i, lanes), a.row, a.col, panel, width, lanes, to, c_row, cols, add);
        }
    }
}

// B's columns, k along memory, turned.
template <class T>
static void pack_block(const MatmulArgs& g, const float* from, index_t kc, index_t columns, const Panels& panels, float* packed) {
    for (index_t p = 0; p < panels.count; ++p) {
        const index_t col = panels.begin(p), width = panels.width(p) * W;
        pack_panel<T>(from + col * g.b_col, g.b_row, g.b_col, kc, std::min(width, columns - col), width,
                      packed + col * lanes_of(kc, T::DEPTH));
    }
}

// One K block of some rows. C is cut into cells: a block of columns, a share of the rows in parts. A thread packs what it needs of A and
// B for itself (what another core has just written comes slowly), does its own cells, then parts that others have not come to.
template <class T>
static void product_of(const MatmulArgs& g, index_t row0, index_t rows, index_t k0, index_t kc) {
    const bool unit = g.a_col == 1, pack_a = !unit || T::ROUNDS;
    const index_t lanes = lanes_of(kc, T::DEPTH), vectors = (g.n + W - 1) / W, tiles = (rows + R_MAX - 1) / R_MAX;
    const index_t threads = thread_limit();
    index_t across = 1, least = PTRDIFF_MAX;  // threads along the columns: so that they pack and read the least
    for (index_t n = 1; n <= std::min(threads, std::max<index_t>(1, vectors / 2)); ++n) {
        const index_t cost = rows * n * (unit ? pack_a ? 4 : 1 : 2) + g.n * (threads / n) * (g.b_col == 1 ? 1 : 2);
        if (threads % n == 0 && cost < least) across = n, least = cost;
    }
    const index_t shares = threads / across, at_least = lanes_of(vectors, BLOCK * T::DEPTH / W);
    const index_t blocks = std::min(vectors, lanes_of(at_least, across) * across), cells = shares * blocks;
    const index_t part_tiles = std::max<index_t>(unit ? 1 : 16 / R_MAX, TASK / (kc * R_MAX * (g.n / blocks + 1)));  // at least
    const index_t share_parts = std::max<index_t>(1, tiles / shares / part_tiles);
    const index_t parts = shares * share_parts;
    const std::size_t head = (sizeof(index_t) * cells + 63) / 64 * 64, flags = (parts + 63) / 64 * 64;
    const std::size_t bytes = head + flags + (pack_a ? sizeof(float) * tiles * R_MAX * lanes : 0);
    index_t* taken = static_cast<index_t*>(scratch(0, bytes));  // parts of each cell
    std::fill_n(taken, cells, 0);
    parallel_for(threads, [&](index_t thread) {
        char* own = static_cast<char*>(scratch(0, bytes)) + head;
        float* packed_a = reinterpret_cast<float*>(own + flags);
        std::fill_n(own, flags, 0);  // whether a part of A is packed
        for (index_t n = 0; n < cells; ++n) {
            const index_t cell = (thread * cells / threads + n) % cells, block = cell % blocks, first = cell / blocks * share_parts;
            const index_t col0 = block * vectors / blocks * W, columns = std::min(g.n, (block + 1) * vectors / blocks * W) - col0;
            const Panels panels(columns);
            float* packed = nullptr;
            for (index_t taking; (taking = __atomic_fetch_add(taken + cell, 1, __ATOMIC_RELAXED)) < share_parts;) {
                const index_t part = first + taking, row = part * tiles / parts * R_MAX;
                const index_t part_rows = std::min(rows, (part + 1) * tiles / parts * R_MAX) - row;
                if (!part_rows) continue;  // more threads than tiles of rows
                const float* straight = nullptr;  // B, where it is packed beside the first tiles
                if (!packed) {
                    packed = static_cast<float*>(scratch(1, sizeof(float) * panels.vectors * W * lanes));
                    const float* b = g.b + k0 * g.b_row + col0 * g.b_col;
                    if (g.b_col == 1) straight = b;
                    else pack_block<T>(g, b, kc, columns, panels, packed);
                }
                const float* from = g.a + (row0 + row) * g.a_row + k0 * g.a_col;
                float* to = packed_a + row * lanes;
                if (pack_a && !own[part]) {
                    unit ? pack_rows<T>(from, g.a_row, part_rows, kc, to) : pack_turned_rows<T>(from, g.a_col, part_rows, kc, to);
                    own[part] = 1;
                }
                const Left a = !pack_a ? Left{from, g.a_row, 1} : unit ? Left{to, lanes, 1} : Left{to, 1, R_MAX};
                const index_t at = row0 + row;
                const index_t left = std::min(rows - row - part_rows, n ? 0 : part_rows), pieces = tiles_of(part_rows, panels);
                const Ahead next(from + part_rows * g.a_row, unit ? g.a_row : g.a_col, unit ? left : kc, unit ? kc : left, pieces);
                const bool last = k0 + kc == g.k;
                multiply<T>(a, part_rows, packed, kc, panels, g.c + at * g.c_row + col0, g.c_row, columns, g.accumulate || k0 > 0,
                            g.m * g.n > BLOCK * KC, last && g.z ? g.z + at * g.c_row + col0 : nullptr, straight, g.b_row, next);
                if (last && has_epilogue(g)) finish(g, at, part_rows, col0, columns);
            }
        }
    });
}

template <class T>
static void product(const MatmulArgs& g) {
    if (g.m <= SKINNY && g.b_row == 1 && g.b_col != 1) return skinny<T>(g);
    for (index_t k0 = 0; k0 < g.k; k0 += KC) {
        const index_t kc = std::min(KC, g.k - k0), at_once = std::max<index_t>(1, PACKED_A / kc / 64) * 64;
        for (index_t row = 0; row < g.m; row += at_once) product_of<T>(g, row, std::min(at_once, g.m - row), k0, kc);
    }
}

static void clear(const MatmulArgs& g) {  // K = 0: an empty sum
    for (index_t i = 0; i < g.m; ++i)
        if (!g.accumulate) std::fill_n(g.c + i * g.c_row, g.n, 0.0f);
    if (has_epilogue(g)) finish(g, 0, g.m, 0, g.n);
}

template <class T>
static void matmul_of(const MatmulArgs& args) {
    if (!args.m || !args.n) return;
    const auto one = [&](index_t entry) {
        MatmulArgs g = args;
        g.a += entry * g.a_batch;
        g.b += entry * g.b_batch;
        g.c += entry * g.c_batch;
        if (g.residual) g.residual += entry * g.c_batch;
        if (g.z) g.z += entry * g.c_batch;
        if (!g.k) clear(g);
        else product<T>(g);
    };
    if (args.batch * args.m * args.n * args.k < SMALL) return serially([&] {
        for (index_t i = 0; i < args.batch; ++i) one(i);
    });
    if (args.batch == 1) return one(0);
    parallel_for(args.batch, one);
}

// Independent chains of multiply-adds, as many as registers hold: what a perfect tile could do. -> FLOP of a thread.
template <class T>
static double peak_of(index_t rounds, float* sink) {
    parallel_for(thread_limit(), [&](index_t thread) {
        constexpr int CHAINS = W == 16 ? 24 : 12;
        V acc[CHAINS], a = splat(1.0f + 1e-7f * float(thread)), b = splat(1e-9f);
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; ++i) acc[i] = splat(float(i));
        for (index_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
            for (int i = 0; i < CHAINS; ++i) acc[i] = T::mul_add(acc[i], a, b);
        }
        V total{};
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; ++i) total += acc[i];
        sink[thread] = sum(total);
    });
    return 2.0 * (W == 16 ? 24 : 12) * W * T::DEPTH * double(rounds);
}
