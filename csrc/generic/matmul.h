// C = op(A) op(B). One rule fixes every bit: an element of C is a chain of FMAs over k = 0, 1, ... in blocks of KC, block sums added in
// order. Tiles, packing, threads and the number of rows are free to change; they never change that chain.
//
// Bound: FMA. A tile of R x NV registers keeps both pipes busy; a panel of packed B (NV * W columns) streams from L2, a panel of
// A (R rows x KC) stays in L1; columns are packed COLS_AT_ONCE at a time, shared by all threads, from where L2 takes its block.

constexpr index_t KC = 768;
constexpr int R_MAX = W == 16 ? 8 : 4;
constexpr int NV_MAX = W == 4 ? 2 : 3;
constexpr index_t BLOCK = 192;            // columns of a task: BLOCK * KC floats stay in L2
constexpr index_t COLS_AT_ONCE = 8 * BLOCK;
constexpr index_t ROWS_AT_ONCE = 1536;
constexpr index_t SMALL = 400000;        // multiply-adds that one thread does in a few microseconds
constexpr index_t SKINNY = 8;             // rows up to which B is read where it lies

// ---- register transpose ----
template <int S, int... I>
INLINE V lower(V a, V b, std::integer_sequence<int, I...>) { return __builtin_shufflevector(a, b, ((I & S) ? W + I - S : I)...); }
template <int S, int... I>
INLINE V upper(V a, V b, std::integer_sequence<int, I...>) { return __builtin_shufflevector(a, b, ((I & S) ? W + I : I + S)...); }

template <int S>
INLINE void transpose_step(V (&x)[W]) {
    if constexpr (S < W) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            if (i & S) continue;
            const V a = x[i], b = x[i + S];
            x[i] = lower<S>(a, b, std::make_integer_sequence<int, W>());
            x[i + S] = upper<S>(a, b, std::make_integer_sequence<int, W>());
        }
        transpose_step<2 * S>(x);
    }
}

// x[i] lane j  <->  x[j] lane i
INLINE void transpose(V (&x)[W]) { transpose_step<1>(x); }

// ---- packing ----
// W x W elements, rows `step` apart, turned: x[k] lane i = src[i * step + k]; rows beyond `rows` are 0.
INLINE void load_turned(const float* src, index_t step, index_t rows, V (&x)[W]) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = i < rows ? load(src + i * step) : V{};
    transpose(x);
}

// B's panel: dst[k * width + j] = src[k * k_step + j * j_step] for k < kc, j < cols; zero for cols <= j < width, a multiple of W.
static void pack_panel(const float* src, index_t k_step, index_t j_step, index_t kc, index_t cols, index_t width, float* dst) {
    index_t k = 0;
    if (j_step == 1 && cols == width) {
        for (; k < kc; ++k)
            for (index_t j = 0; j < width; j += W) store(dst + k * width + j, load(src + k * k_step + j));
    } else if (k_step == 1) {
        k = kc / W * W;
        for (index_t j = 0; j < width; j += W)
            for (index_t at = 0; at < k; at += W) {
                V x[W];
                load_turned(src + j * j_step + at, j_step, cols - j, x);
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) store(dst + (at + i) * width + j, x[i]);
            }
    }
    for (; k < kc; ++k)
        for (index_t j = 0; j < width; ++j) dst[k * width + j] = j < cols ? src[k * k_step + j * j_step] : 0.0f;
}

// A's rows [0, rows) as panels of R_MAX: dst[p * R_MAX * kc + k * R_MAX + i] = src[(p * R_MAX + i) * row_step + k * k_step],
// zero beyond rows.
static void pack_rows(const float* src, index_t row_step, index_t k_step, index_t rows, index_t kc, float* dst) {
    constexpr index_t R = R_MAX;
    const index_t whole = rows / R;
    if (row_step == 1) {
        for (index_t k = 0; k < kc; ++k)
            for (index_t p = 0; p < whole; ++p) std::memcpy(dst + (p * kc + k) * R, src + k * k_step + p * R, R * sizeof(float));
    } else if (k_step == 1) {
        const index_t turned = kc / W * W;
        for (index_t p = 0; p < whole; p += W / R)  // a turned block holds the rows of W / R panels
            for (index_t k = 0; k < turned; k += W) {
                V x[W];
                load_turned(src + p * R * row_step + k, row_step, (whole - p) * R, x);
                for (index_t q = 0; q < W / R && p + q < whole; ++q)
#pragma GCC unroll 16
                    for (int i = 0; i < W; ++i)
                        std::memcpy(dst + ((p + q) * kc + k + i) * R, reinterpret_cast<const float*>(&x[i]) + q * R, R * sizeof(float));
            }
        for (index_t i = 0; i < whole * R; ++i)
            for (index_t k = turned; k < kc; ++k) dst[(i / R * kc + k) * R + i % R] = src[i * row_step + k];
    }
    const index_t done = row_step == 1 || k_step == 1 ? whole * R : 0;
    for (index_t i = done; i < (rows + R - 1) / R * R; ++i)
        for (index_t k = 0; k < kc; ++k) dst[(i / R * kc + k) * R + i % R] = i < rows ? src[i * row_step + k * k_step] : 0.0f;
}

// ---- the tile ----
// C[R, cols] (+)= A[R, kc] B[kc, NV * W]. A(r, k) = a[r * a_row + k] where UNIT, else a[r + k * a_col]; B rows are b_row apart.
template <int R, int NV, bool UNIT>
static void tile(const float* a, index_t a_step, const float* b, index_t b_row, index_t kc, float* c, index_t c_row, index_t cols,
                 bool add) {
    V acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = V{};
    for (index_t k = 0; k < kc; ++k) {
        V bv[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) bv[v] = load(b + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const V ar = splat(UNIT ? a[r * a_step] : a[r]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] = ar * bv[v] + acc[r][v];
        }
        a += UNIT ? 1 : a_step;
        b += b_row;
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

template <int R, bool UNIT>
static void tile_of_width(int nv, const float* a, index_t a_step, const float* b, index_t b_row, index_t kc, float* c, index_t c_row,
                          index_t cols, bool add) {
    if (nv == 1) tile<R, 1, UNIT>(a, a_step, b, b_row, kc, c, c_row, cols, add);
    if (nv == 2) tile<R, 2, UNIT>(a, a_step, b, b_row, kc, c, c_row, cols, add);
    if constexpr (NV_MAX >= 3)
        if (nv == 3) tile<R, 3, UNIT>(a, a_step, b, b_row, kc, c, c_row, cols, add);
}

// `rows` of 1, 2, 4 or 8.
template <bool UNIT>
static void tile_of_rows(int rows, int nv, const float* a, index_t a_step, const float* b, index_t b_row, index_t kc, float* c,
                         index_t c_row, index_t cols, bool add) {
    if (rows == 1) tile_of_width<1, UNIT>(nv, a, a_step, b, b_row, kc, c, c_row, cols, add);
    if (rows == 2) tile_of_width<2, UNIT>(nv, a, a_step, b, b_row, kc, c, c_row, cols, add);
    if (rows == 4) tile_of_width<4, UNIT>(nv, a, a_step, b, b_row, kc, c, c_row, cols, add);
    if constexpr (R_MAX >= 8)
        if (rows == 8) tile_of_width<8, UNIT>(nv, a, a_step, b, b_row, kc, c, c_row, cols, add);
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
// B transposed in memory (w of a linear layer): W columns at a time, transposed in registers; the weights are read once.
template <int M>
static void skinny_columns(const MatmulArgs& g, index_t col, index_t cols) {
    V total[M];
    for (index_t k0 = 0; k0 < g.k || k0 == 0; k0 += KC) {
        const index_t kc = std::min(KC, g.k - k0), whole = kc / W * W;
        V acc[M];
        for (int r = 0; r < M; ++r) acc[r] = V{};
        index_t k = 0;
        for (; k < whole; k += W) {
            V x[W];
            load_turned(g.b + col * g.b_col + k0 + k, g.b_col, cols, x);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
#pragma GCC unroll 8
                for (int r = 0; r < M; ++r) acc[r] = splat(g.a[r * g.a_row + (k0 + k + i) * g.a_col]) * x[i] + acc[r];
        }
        for (; k < kc; ++k) {
            float lanes[W];
            for (int i = 0; i < W; ++i) lanes[i] = i < cols ? g.b[(col + i) * g.b_col + k0 + k] : 0.0f;
            for (int r = 0; r < M; ++r) acc[r] = splat(g.a[r * g.a_row + (k0 + k) * g.a_col]) * load(lanes) + acc[r];
        }
        for (int r = 0; r < M; ++r) total[r] = k0 ? total[r] + acc[r] : acc[r];
    }
    for (int r = 0; r < M; ++r) {
        float* c = g.c + r * g.c_row + col;
        store_n(c, g.accumulate ? load_n(c, cols) + total[r] : total[r], cols);
    }
    if (has_epilogue(g)) finish(g, 0, M, col, cols);
}

static void skinny(const MatmulArgs& g) {
    parallel_ranges(g.n, 4 * W, [&](index_t begin, index_t end) {
        for (index_t col = begin; col < end; col += W) {
            const index_t cols = std::min<index_t>(W, end - col);
            if (g.m <= 2) g.m == 1 ? skinny_columns<1>(g, col, cols) : skinny_columns<2>(g, col, cols);
            else if (g.m <= 4) g.m == 3 ? skinny_columns<3>(g, col, cols) : skinny_columns<4>(g, col, cols);
            else if (g.m <= 6) g.m == 5 ? skinny_columns<5>(g, col, cols) : skinny_columns<6>(g, col, cols);
            else g.m == 7 ? skinny_columns<7>(g, col, cols) : skinny_columns<8>(g, col, cols);
        }
    });
}

// ---- the product ----
struct Block {  // one K block of some rows and columns, A and B packed or where they lie
    const float* a;
    index_t a_step;
    bool a_unit, a_packed;
    const float* b;  // packed panels of `columns`, each kc x its width
};

static void multiply(const MatmulArgs& g, const Block& block, index_t row0, index_t col0, index_t row, index_t rows, const Panels& panels,
                     index_t first, index_t last, index_t columns, index_t kc, bool add, bool finished) {
    for (index_t i = row; i < row + rows;) {
        const int r = rows_at(row + rows - i);
        const float* a = block.a_packed ? block.a + i / R_MAX * R_MAX * kc + i % R_MAX : block.a + i * (block.a_unit ? block.a_step : 1);
        for (index_t p = first; p < last; ++p) {
            const index_t col = panels.begin(p), width = panels.width(p) * W, cols = std::min(width, columns - col);
            float* c = g.c + (row0 + i) * g.c_row + col0 + col;
            if (block.a_unit)
                tile_of_rows<true>(r, panels.width(p), a, block.a_step, block.b + col * kc, width, kc, c, g.c_row, cols, add);
            else
                tile_of_rows<false>(r, panels.width(p), a, block.a_step, block.b + col * kc, width, kc, c, g.c_row, cols, add);
        }
        if (finished) {
            const index_t begin = panels.begin(first), end = std::min(columns, last == panels.count ? columns : panels.begin(last));
            finish(g, row0 + i, r, col0 + begin, end - begin);
        }
        i += r;
    }
}

static void product(const MatmulArgs& g) {
    if (g.m <= SKINNY && g.b_row == 1 && g.b_col != 1) return skinny(g);
    const bool a_unit = g.a_col == 1, a_packed = g.n > 512 || (g.a_col != 1 && g.a_row != 1);
    for (index_t row0 = 0; row0 < g.m; row0 += ROWS_AT_ONCE) {
        const index_t rows = std::min(ROWS_AT_ONCE, g.m - row0);
        for (index_t k0 = 0; k0 < g.k; k0 += KC) {
            const index_t kc = std::min(KC, g.k - k0);
            const bool add = g.accumulate || k0 > 0, finished = k0 + kc == g.k && has_epilogue(g);
            Block block{g.a + row0 * g.a_row + k0 * g.a_col, a_unit ? g.a_row : g.a_col, a_unit, a_packed, nullptr};
            const float* a = block.a;
            if (a_packed) {
                const index_t panels = (rows + R_MAX - 1) / R_MAX;
                float* packed = static_cast<float*>(scratch(0, sizeof(float) * panels * R_MAX * kc));
                parallel_ranges(rows, 8 * R_MAX, [&](index_t begin, index_t end) {
                    pack_rows(a + begin * g.a_row, g.a_row, g.a_col, end - begin, kc, packed + begin * kc);
                });
                block.a = packed;
                block.a_step = R_MAX;
                block.a_unit = false;
            }
            for (index_t col0 = 0; col0 < g.n; col0 += COLS_AT_ONCE) {
                const index_t columns = std::min(COLS_AT_ONCE, g.n - col0);
                const Panels panels(columns);
                float* packed = static_cast<float*>(scratch(1, sizeof(float) * panels.vectors * W * kc));
                const float* b = g.b + k0 * g.b_row + col0 * g.b_col;
                parallel_ranges(panels.count, 2, [&](index_t begin, index_t end) {
                    for (index_t p = begin; p < end; ++p) {
                        const index_t col = panels.begin(p), width = panels.width(p) * W;
                        pack_panel(b + col * g.b_col, g.b_row, g.b_col, kc, std::min(width, columns - col), width, packed + col * kc);
                    }
                });
                block.b = packed;
                const index_t per_task = std::max<index_t>(1, BLOCK / (NV_MAX * W)), col_tasks = (panels.count + per_task - 1) / per_task;
                const index_t row_grain = std::max<index_t>(R_MAX, (rows / 8 + R_MAX - 1) / R_MAX * R_MAX);
                const index_t row_tasks = (rows + row_grain - 1) / row_grain;
                parallel_for(col_tasks * row_tasks, [&](index_t task) {
                    const index_t first = task / row_tasks * per_task, row = task % row_tasks * row_grain;
                    multiply(g, block, row0, col0, row, std::min(row_grain, rows - row), panels, first,
                             std::min(panels.count, first + per_task), columns, kc, add, finished);
                });
            }
        }
    }
}

static void clear(const MatmulArgs& g) {  // K = 0: an empty sum
    for (index_t i = 0; i < g.m; ++i)
        if (!g.accumulate) std::fill_n(g.c + i * g.c_row, g.n, 0.0f);
    if (has_epilogue(g)) finish(g, 0, g.m, 0, g.n);
}

static void matmul(const MatmulArgs& args) {
    const auto one = [&](index_t entry) {
        MatmulArgs g = args;
        g.a += entry * g.a_batch;
        g.b += entry * g.b_batch;
        g.c += entry * g.c_batch;
        if (g.residual) g.residual += entry * g.c_batch;
        if (g.z) g.z += entry * g.c_batch;
        g.k ? product(g) : clear(g);
    };
    if (args.batch * args.m * args.n * args.k < SMALL) return serially([&] {
        for (index_t i = 0; i < args.batch; ++i) one(i);
    });
    if (args.batch == 1) return one(0);
    parallel_for(args.batch, one);
}

// 24 independent FMAs a round: what a perfect tile could do.
static void fma_peak(index_t rounds, float* sink) {
    parallel_for(thread_limit(), [&](index_t thread) {
        V acc[24], a = splat(1.0f + 1e-7f * float(thread)), b = splat(1e-9f);
#pragma GCC unroll 24
        for (int i = 0; i < 24; ++i) acc[i] = splat(float(i));
        for (index_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
            for (int i = 0; i < 24; ++i) acc[i] = acc[i] * a + b;
        }
        V total{};
#pragma GCC unroll 24
        for (int i = 0; i < 24; ++i) total += acc[i];
        sink[thread] = sum(total);
    });
}
