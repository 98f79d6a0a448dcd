// What attention multiplies with. A lane of 32 bits holds a float32 or, where PAIRS, two neighbours along the summed axis rounded to
// bfloat16: a product over pairs is the product over floats with half the steps, so everything else is written once for both.

constexpr index_t GROUP = R_MAX;       // rows that a tile multiplies at once; what they see is looked up for all of them
constexpr index_t PANEL = NV_MAX * W;  // columns of packed keys

template <bool PAIRS>
constexpr index_t lanes_of(index_t n) { return PAIRS ? (n + 1) / 2 : n; }
constexpr index_t whole(index_t n) { return (n + W - 1) / W * W; }

// Pairs as matmul.h's tiles take lanes; on every table, so that the rows laid out below have one form.
struct Pairs {
    INLINE V every(const float* lane) { return as_float(VI{} | *reinterpret_cast<const LaneMem*>(lane)); }
    INLINE V mul_add(V a, V b, V c) { return bf16_dot(c, VU(a), VU(b)); }
};
template <bool PAIRS>
using Lane = std::conditional_t<PAIRS, Pairs, Float32>;

// C[n, cols] (+)= A[n, steps] B[steps, cols]; B's rows are whole vectors.
template <bool PAIRS>
static void times(index_t n, const float* a, index_t a_row, index_t a_col, const float* b, index_t b_row, index_t steps, float* c,
                  index_t c_row, index_t cols, bool add) {
    const Panels panels(cols);
    for (index_t p = 0; p < panels.count; ++p)
        for (index_t i = 0, r, col = panels.begin(p); i < n; i += r) {
            r = rows_at(n - i);
            tile_of_rows<Lane<PAIRS>>(int(r), panels.width(p), a + i * a_row, a_row, a_col, b + col, b_row, steps,
                                            c + i * c_row + col, c_row, cols - col, add);
        }
}

// The same (adding) where B has rows that are not finite: one row at a time, without what in B has a factor of 0 in A.
template <bool PAIRS>
static void times_hiding(index_t n, const float* a, index_t a_row, const float* b, index_t b_row, index_t steps, float* c, index_t c_row,
                         index_t cols, float* copy) {
    const index_t width = whole(cols);
    for (index_t i = 0; i < n; ++i) {
        for (index_t k = 0; k < steps; ++k) {
            uint32_t factor;
            std::memcpy(&factor, a + i * a_row + k, sizeof factor);
            const uint32_t low = factor & 0x7FFF ? 0xFFFF : 0, high = factor & 0x7FFF0000 ? 0xFFFF0000 : 0;
            const VU kept = (PAIRS ? low | high : factor << 1 ? ~0u : 0) + VU{};
            for (index_t j = 0; j < width; j += W)
                store(copy + k * width + j, reinterpret_cast<V>(reinterpret_cast<VU>(load(b + k * b_row + j)) & kept));
        }
        times<PAIRS>(1, a + i * a_row, a_row, 1, copy, width, steps, c + i * c_row, c_row, cols, true);
    }
}

// ---- into lanes ----

constexpr index_t AHEAD = 16;  // rows; they lie far apart (all heads of a position stand side by side), and no hardware guesses that

// Row i of `rows`:(n, d), if there is one, is on its way into the caches, to be read or (WRITE) written.
template <bool WRITE = false>
INLINE void fetch(const float* rows, index_t row, index_t i, index_t n, index_t d) {
    if (i >= n) return;
    for (index_t j = 0; j < d; j += 16) __builtin_prefetch(rows + i * row + j, WRITE);
}

INLINE V load_left(const float* p, index_t left) { return left >= W ? load(p) : left > 0 ? load_n(p, left) : V{}; }

// W lanes along a row of which `left` numbers follow, times scale; 0 beyond them.
template <bool PAIRS>
INLINE V row_lanes(const float* p, index_t left, float scale) {
    const V x = load_left(p, left) * scale;
    if constexpr (PAIRS) return reinterpret_cast<V>(bf16_row(x, load_left(p + W, left - W) * scale));
    else return x;
}

// to[i]: row i of from:(n, d) as lanes, whole vectors of them.
template <bool PAIRS>
static void lay_rows(const float* from, index_t row, index_t n, index_t d, float scale, float* to, index_t to_row) {
    for (index_t i = 0; i < n; ++i) {
        fetch(from, row, i + AHEAD, n, d);
        for (index_t j = 0; j < to_row; j += W)
            store(to + i * to_row + j, row_lanes<PAIRS>(from + i * row + j * (PAIRS ? 2 : 1), d - j * (PAIRS ? 2 : 1), scale));
    }
}

// to[i]: row i of from:(n, d), or rows 2 i and 2 i + 1 as pairs, as whole vectors: a second factor summed over n. -> whether all is finite.
template <bool PAIRS>
static bool stack_rows(const float* from, index_t row, index_t n, index_t d, float scale, float* to, index_t to_row) {
    V zero{};
    for (index_t i = 0; i < n; i += PAIRS ? 2 : 1, to += to_row) {
        const float* x = from + i * row;
        fetch(from, row, i + AHEAD, n, d);
        if (PAIRS) fetch(from, row, i + AHEAD + 1, n, d);
        for (index_t j = 0; j < to_row; j += W) {
            const V y = load_left(x + j, d - j) * scale;
            if constexpr (PAIRS) {
                const VU pair = bf16_pair(y, i + 1 < n ? load_left(x + row + j, d - j) * scale : V{});
                zero = zero + bf16_first(pair) * 0.0f + bf16_second(pair) * 0.0f;
                store(to + j, reinterpret_cast<V>(pair));
            } else {
                zero = zero + y * 0.0f;
                store(to + j, y);
            }
        }
    }
    return sum(zero) == 0.0f;
}

// x[i] lane r: lane at + i of row r of k:(n, d); 0 beyond n and d.
template <bool PAIRS>
INLINE void turn_rows(const float* k, index_t row, index_t n, index_t d, index_t at, V (&x)[W]) {
    const index_t first = at * (PAIRS ? 2 : 1);
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) x[r] = r < n ? row_lanes<PAIRS>(k + r * row + first, d - first, 1.0f) : V{};
    transpose(x);
}

// Keys k:(n, d) as panels: dst[p][lane along d][PANEL].
template <bool PAIRS>
static void pack_keys(const float* k, index_t row, index_t n, index_t d, float* dst) {
    const index_t lanes = lanes_of<PAIRS>(d);
    for (index_t j = 0; j < n; j += W) {
        float* to = dst + j / PANEL * PANEL * lanes + j % PANEL;
        for (index_t i = j; i < j + W; ++i) fetch(k, row, i + AHEAD, n, d);
        for (index_t at = 0; at < lanes; at += W) {
            V x[W];
            turn_rows<PAIRS>(k + j * row, row, n - j, d, at, x);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
                if (at + i < lanes) store(to + (at + i) * PANEL, x[i]);
        }
    }
}

// scores[m, n] = Q K^T for M rows and keys where they lie: read once, transposed in registers.
template <bool PAIRS, int M>
static void few_scores(const float* q, index_t q_row, const float* k, index_t row, index_t n, index_t d, float* scores, index_t width) {
    const index_t lanes = lanes_of<PAIRS>(d);
    for (index_t j = 0; j < n; j += W) {
        V acc[M];
        for (int m = 0; m < M; ++m) acc[m] = V{};
        for (index_t i = j; i < j + W; ++i) fetch(k, row, i + AHEAD, n, d);
        for (index_t at = 0; at < lanes; at += W) {
            V x[W];
            turn_rows<PAIRS>(k + j * row, row, n - j, d, at, x);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
                if (at + i < lanes)
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m) acc[m] = Lane<PAIRS>::mul_add(Lane<PAIRS>::every(q + m * q_row + at + i), x[i], acc[m]);
        }
        for (int m = 0; m < M; ++m) store(scores + m * width + j, acc[m]);
    }
}

struct Carver {  // hands out 64-byte aligned pieces of one scratch block; measures when there is none
    char* block;
    std::size_t used = 0;
    template <class T>
    T* take(index_t n) {
        T* piece = reinterpret_cast<T*>(block + used);
        used += (std::size_t(n) * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
};
