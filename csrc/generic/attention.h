// out = softmax(scale q k^T + bias) v over what each query may see, and its vjp, a tile of queries by a tile of keys at a time
// (online softmax: Milakov & Gimelshein 2018; Rabe & Staats 2021; backward from lse: Dao et al. 2022).
//
// The bits of a query row depend on nothing but its own keys: key tiles start at fixed key indices, and a key that a row may not see
// gives it a probability of exactly 0, which leaves every chain of FMAs as it was. So tiles and columns that a whole tile of queries
// does not see are skipped, and any Tq, batch or number of threads gives the same row.
//
// Bound: FMA. The score tile stays in L1, the packed key tile in L2.

constexpr index_t PANEL = NV_MAX * W;  // columns of packed keys
constexpr index_t KEYS = 240;          // forward: keys of a tile, whole panels for every W
constexpr index_t QUERIES = 16;        // forward: query rows of a tile
constexpr index_t FEW = 4;             // forward: rows up to which keys and values are read where they lie
constexpr index_t TASK_ROWS = 256;     // forward: query rows that share a packed key tile
constexpr index_t VJP_QUERIES = 32;    // vjp: query rows of a tile
constexpr index_t VJP_KEYS = 96;       // vjp: keys of a tile
constexpr index_t VJP_TILES = 10;      // vjp: key tiles of a task, at least
constexpr index_t VJP_PARTS = 4;       // vjp: tasks along the keys, at most: each holds a dq of its own
static_assert(KEYS % PANEL == 0 && VJP_KEYS % PANEL == 0 && QUERIES % W == 0, "whole panels");

// ---- what a query sees ----

struct Sight {  // keys [lo, hi), and of those the ones of its segment
    index_t lo, hi;
    int32_t segment;
};

static Sight sight(const AttentionArgs& g, index_t b, index_t i) {
    const index_t at = (g.starts ? index_t(g.starts[b]) : g.tk - g.tq) + i;
    Sight s{0, g.tk, 0};
    if (g.window) s.lo = at - g.window + 1;
    if (g.window) s.hi = at + g.window;
    if (g.causal) s.hi = at + 1;
    s.lo = std::max<index_t>(0, s.lo);
    s.hi = std::min(g.tk, s.hi);
    if (g.q_segments) {
        s.segment = g.q_segments[b * g.tq + i];
        if (s.segment <= 0) s.hi = 0;
    }
    if (s.hi <= s.lo) s.lo = s.hi = 0;
    return s;
}

struct View {  // columns [begin, end) of a key tile are all that a tile of queries sees of it
    index_t begin, end;
    bool masked, segmented;  // some row does not see all of them; for reasons of segments too
    index_t first() const { return begin / W * W; }
};

// `keys` and `segments` (or null) are those of the key tile at key0.
static View view(const Sight* rows, index_t n, index_t key0, index_t keys, const int32_t* segments) {
    index_t lo = PTRDIFF_MAX, hi = 0, lo_last = 0, hi_first = PTRDIFF_MAX;
    int32_t least = INT32_MAX, most = 0;
    for (index_t r = 0; r < n; ++r) {
        hi_first = std::min(hi_first, rows[r].hi);
        if (rows[r].hi == 0) continue;
        lo = std::min(lo, rows[r].lo);
        lo_last = std::max(lo_last, rows[r].lo);
        hi = std::max(hi, rows[r].hi);
        least = std::min(least, rows[r].segment);
        most = std::max(most, rows[r].segment);
    }
    View s{std::max<index_t>(0, lo - key0), std::min(keys, hi - key0), false, false};
    if (segments && s.begin < s.end) {
        const auto outside = [&](index_t j) { return segments[j] < least || segments[j] > most; };
        while (s.begin < s.end && outside(s.begin)) ++s.begin;
        while (s.begin < s.end && outside(s.end - 1)) --s.end;
        s.segmented = least != most || s.begin % W || s.end % W;  // a vector may reach over the columns just left out
        for (index_t j = s.begin; j < s.end && !s.segmented; ++j) s.segmented = segments[j] != least;
    }
    s.masked = s.segmented || s.begin % W || s.end % W || lo_last > key0 + s.begin || hi_first < key0 + s.end;
    return s;
}

INLINE VI lane_numbers() {
    VI x;
    for (int i = 0; i < W; ++i) x[i] = i;
    return x;
}

// Lanes of the keys key0 + j, ... that a row sees; `segments` is padded to whole vectors.
INLINE VI visible(const Sight& s, index_t key0, index_t j, const int32_t* segments) {
    const VI key = lane_numbers() + int32_t(j);
    const VI seen = (key >= int32_t(std::max<index_t>(s.lo - key0, -1))) & (key < int32_t(std::min<index_t>(s.hi - key0, 1 << 20)));
    return segments ? seen & (*reinterpret_cast<const VIMem*>(segments + j) == s.segment) : seen;
}

// ---- pieces ----

// e^x for x <= 0 (a rounding error above it does no harm) to 1.2e-7 relative; exactly 1 at 0, exactly 0 below -86.5, NaN stays.
INLINE V exp_of_negative(V x) {
    const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits
    const V shifted = x * 1.44269504f + magic;
    const V n = shifted - magic;
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const V y = p * as_float((as_int(shifted) + 127) << 23);
    return x < -86.5f ? V{} : y;
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

// to:(n, dp) = scale * from:(n, d), rows row apart; zero where d <= column < dp. -> whether all of it is finite.
static bool copy_rows(const float* from, index_t row, index_t n, index_t d, float scale, float* to, index_t dp) {
    V zero{};
    for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < dp; j += W) {
            const V x = load_n(from + i * row + j, std::min<index_t>(W, d - j));
            zero = zero + x * 0.0f;
            store(to + i * dp + j, x * scale);
        }
    return sum(zero) == 0.0f;
}

static bool is_finite(const float* x, index_t row, index_t n, index_t d) {  // d a multiple of W
    V zero{};
    for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < d; j += W) zero = zero + load(x + i * row + j) * 0.0f;
    return sum(zero) == 0.0f;
}

// Keys [0, keys) as panels: dst[p][d][PANEL].
static void pack_keys(const float* k, index_t row, index_t keys, index_t d, float* dst) {
    for (index_t j = 0; j < keys; j += PANEL, dst += d * PANEL) pack_panel(k + j * row, 1, row, d, std::min(PANEL, keys - j), PANEL, dst);
}

// C[n, cols] (+)= A[n, kc] B[kc, cols]: B and C are padded to whole vectors unless `cols` says less.
template <bool UNIT>
static void times(index_t n, const float* a, index_t a_step, const float* b, index_t b_row, index_t kc, float* c, index_t c_row,
                  index_t cols, bool add) {
    const Panels panels(cols);
    for (index_t p = 0; p < panels.count; ++p) {
        const index_t col = panels.begin(p);
        for (index_t i = 0; i < n;) {
            const int r = rows_at(n - i);
            tile_of_rows<UNIT>(r, panels.width(p), a + i * (UNIT ? a_step : 1), a_step, b + col, b_row, kc, c + i * c_row + col, c_row,
                               cols - col, add);
            i += r;
        }
    }
}

// The same (adding) where B has rows that are not finite: one row at a time, without the rows of B whose factor in A is 0.
static void times_hiding(index_t n, const float* a, index_t a_row, const float* b, index_t b_row, index_t kc, float* c, index_t c_row,
                         index_t cols, float* copy, index_t dp) {
    for (index_t i = 0; i < n; ++i) {
        for (index_t k = 0; k < kc; ++k)
            for (index_t j = 0; j < dp; ++j) copy[k * dp + j] = a[i * a_row + k] == 0.0f ? 0.0f : b[k * b_row + j];
        times<true>(1, a + i * a_row, a_row, copy, dp, kc, c + i * c_row, c_row, cols, true);
    }
}

// scores[n, ...] = Q[n, d] K^T for the columns of a view.
static void scores_of(const View& s, const float* q, index_t dp, index_t n, const float* packed, index_t d, float* scores, index_t width) {
    for (index_t j = s.begin / PANEL * PANEL; j < s.end; j += PANEL) {
        const int nv = int(std::min<index_t>(NV_MAX, (s.end - j + W - 1) / W));
        for (index_t i = 0; i < n;) {
            const int r = rows_at(n - i);
            tile_of_rows<true>(r, nv, q + i * dp, dp, packed + j * d, PANEL, d, scores + i * width + j, width, nv * W, false);
            i += r;
        }
    }
}

// The same for up to FEW rows, with the keys where they lie: read once, transposed in registers.
static void scores_of_few(const View& s, const float* q, index_t dp, index_t n, const float* k, index_t k_row, index_t d, float* scores) {
    MatmulArgs g{};
    g.a = q;
    g.a_row = dp;
    g.a_col = 1;
    g.b = k;
    g.b_col = k_row;
    g.b_row = 1;
    g.c = scores;
    g.c_row = KEYS;
    g.k = d;
    for (index_t j = s.first(); j < s.end; j += W) {
        const index_t cols = std::min<index_t>(W, s.end - j);
        if (n == 1) skinny_columns<1>(g, j, cols);
        if (n == 2) skinny_columns<2>(g, j, cols);
        if (n == 3) skinny_columns<3>(g, j, cols);
        if (n == 4) skinny_columns<4>(g, j, cols);
    }
}

static void add_bias(const View& s, float* scores, const float* bias) {
    for (index_t j = s.begin; j < s.end; j += W) {
        const index_t n = std::min<index_t>(W, s.end - j);
        store_n(scores + j, load_n(scores + j, n) + load_n(bias + j, n), n);
    }
}

INLINE const float* bias_row(const AttentionArgs& g, const float* bias, index_t b, index_t h, index_t i, index_t key) {
    return bias + b * g.bias_b + h * g.bias_h + i * g.bias_q + key;
}

// ---- forward ----

struct Forward {  // a task: query rows of some heads that share their keys
    const AttentionArgs& g;
    index_t b, kv_head, head, query, queries, rows;  // row r: head + r / queries, query + r % queries
    index_t dp;
    float *q, *o, *total, *top;  // (rows, dp) scaled queries and sums of p v; (rows, W) sums of p; (rows,) largest score so far
    float *keys, *values, *copy, *scores;
    int32_t* segments;
    Sight* sights;
    View* views;

    Forward(const AttentionArgs& args, index_t rows) : g(args), rows(rows), dp((args.d + W - 1) / W * W) {
        Carver measure{nullptr};
        carve(measure);
        Carver pieces{static_cast<char*>(scratch(2, measure.used))};
        carve(pieces);
    }

    void carve(Carver& c) {
        q = c.take<float>(rows * dp);
        o = c.take<float>(rows * dp);
        total = c.take<float>(rows * W);
        top = c.take<float>(rows + QUERIES);
        keys = c.take<float>(KEYS * g.d);
        values = c.take<float>(KEYS * dp);
        copy = c.take<float>(KEYS * dp);
        scores = c.take<float>(QUERIES * KEYS);
        segments = c.take<int32_t>(KEYS + W);
        sights = c.take<Sight>(rows);
        views = c.take<View>((rows + QUERIES - 1) / QUERIES);
    }

    index_t head_of(index_t r) const { return head + r / queries; }
    index_t query_of(index_t r) const { return query + r % queries; }

    void run() {
        index_t lo = g.tk, hi = 0;
        for (index_t r = 0; r < rows; ++r) {
            copy_rows(g.q + b * g.q_batch + query_of(r) * g.q_row + head_of(r) * g.d, 0, 1, g.d, g.scale, q + r * dp, dp);
            sights[r] = sight(g, b, query_of(r));
            if (sights[r].hi == 0) continue;
            lo = std::min(lo, sights[r].lo);
            hi = std::max(hi, sights[r].hi);
        }
        std::fill_n(o, rows * dp, 0.0f);
        std::fill_n(total, rows * W, 0.0f);
        std::fill_n(top, rows + QUERIES, -__builtin_inff());
        for (index_t key = lo / KEYS * KEYS; key < hi; key += KEYS) key_tile(key, std::min(KEYS, hi - key));
        for (index_t r = 0; r < rows; ++r) write(r);
    }

    void key_tile(index_t key, index_t n) {
        if (g.k_segments) {
            std::copy_n(g.k_segments + b * g.tk + key, n, segments);
            std::fill_n(segments + n, KEYS + W - n, 0);
        }
        bool seen = false;
        for (index_t r = 0, t = 0; r < rows; r += QUERIES, ++t) {
            views[t] = view(sights + r, std::min(QUERIES, rows - r), key, n, g.k_segments ? segments : nullptr);
            seen |= views[t].begin < views[t].end;
        }
        if (!seen) return;
        const float* k = g.k + b * g.k_batch + key * g.k_row + kv_head * g.d;
        const float* v = g.v + b * g.v_batch + key * g.v_row + kv_head * g.d;
        const bool few = rows <= FEW, in_place = few && dp == g.d;
        if (!few) pack_keys(k, g.k_row, n, g.d, keys);
        const bool finite = in_place ? is_finite(v, g.v_row, n, g.d) : copy_rows(v, g.v_row, n, g.d, 1.0f, values, dp);
        const index_t v_row = in_place ? g.v_row : dp;
        if (!in_place) v = values;
        for (index_t r = 0, t = 0; r < rows; r += QUERIES, ++t) {
            const View& s = views[t];
            if (s.begin >= s.end) continue;
            const index_t tile_rows = std::min(QUERIES, rows - r);
            if (few)
                scores_of_few(s, q, dp, rows, k, g.k_row, g.d, scores);
            else
                scores_of(s, q + r * dp, dp, tile_rows, keys, g.d, scores, KEYS);
            softmax_step(s, r, tile_rows, key);
            if (finite)
                times<true>(tile_rows, scores + s.begin, KEYS, v + s.begin * v_row, v_row, s.end - s.begin, o + r * dp, dp, dp, true);
            else
                times_hiding(tile_rows, scores + s.begin, KEYS, v + s.begin * v_row, v_row, s.end - s.begin, o + r * dp, dp, dp, copy, dp);
        }
    }

    // Scores of rows r, ... become e^(score - top); top, total and o follow the new top.
    void softmax_step(const View& s, index_t r, index_t n, index_t key) {
        const int32_t* segs = s.segmented ? segments : nullptr;
        float alpha[QUERIES];
        for (index_t group = 0; group < n; group += W) {
            V tops[W];
            for (index_t i = 0; i < W; ++i) {
                tops[i] = splat(-__builtin_inff());
                if (group + i >= n) continue;
                float* x = scores + (group + i) * KEYS;
                const index_t row = r + group + i;
                if (g.bias) add_bias(s, x, bias_row(g, g.bias, b, head_of(row), query_of(row), key));
                V most = tops[i];
                if (s.masked) {
                    for (index_t j = s.first(); j < s.end; j += W) {
                        const V y = visible(sights[row], key, j, segs) ? load(x + j) : tops[i];
                        store(x + j, y);
                        most = vmax(y, most);
                    }
                } else {
                    for (index_t j = s.begin; j < s.end; j += W) most = vmax(load(x + j), most);
                }
                tops[i] = most;
            }
            transpose(tops);
            V most = load(top + r + group);
            const V before = most;
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) most = vmax(tops[i], most);
            const V a = before == most ? splat(1.0f) : exp_of_negative(before - most);  // -inf == -inf too
            store(alpha + group, a);
            store_n(top + r + group, most, std::min<index_t>(W, n - group));
        }
        for (index_t i = 0; i < n; ++i) {
            float* x = scores + i * KEYS;
            const float most = top[r + i];
            const V shift = splat(most == -__builtin_inff() ? 0.0f : most);
            V added{};
            for (index_t j = s.first(); j < s.end; j += W) {
                const V p = exp_of_negative(load(x + j) - shift);
                store(x + j, p);
                added = added + p;
            }
            float* t = total + (r + i) * W;
            store(t, load(t) * alpha[i] + added);
            if (alpha[i] != 1.0f)
                for (index_t j = 0; j < dp; j += W) store(o + (r + i) * dp + j, load(o + (r + i) * dp + j) * alpha[i]);
        }
    }

    void write(index_t r) {
        const float all = sum(load(total + r * W));
        const index_t h = head_of(r), i = query_of(r);
        float* y = g.out + ((b * g.tq + i) * g.h + h) * g.d;
        const float factor = all == 0.0f ? 0.0f : 1.0f / all;
        for (index_t j = 0; j < g.d; j += W) store_n(y + j, load(o + r * dp + j) * factor, std::min<index_t>(W, g.d - j));
        g.lse[(b * g.h + h) * g.tq + i] = all == 0.0f ? -__builtin_inff() : top[r] + std::log(all);
    }
};

static void attention(const AttentionArgs& g) {
    if (!g.b || !g.tq || !g.h) return;
    const index_t group = g.h / g.hkv, queries = std::min(TASK_ROWS, g.tq);
    const index_t heads = std::min(group, std::max<index_t>(1, TASK_ROWS / g.tq));  // of one kv head, in a task
    const index_t head_tasks = (group + heads - 1) / heads, query_tasks = (g.tq + queries - 1) / queries;
    const index_t entries = g.b * g.hkv * head_tasks;
    parallel_for(entries * query_tasks, [&](index_t task) {
        const index_t entry = task % entries, query = (query_tasks - 1 - task / entries) * queries;  // causal: the longest first
        const index_t first = entry % head_tasks * heads, n = std::min(queries, g.tq - query);
        Forward f(g, std::min(heads, group - first) * n);
        f.b = entry / head_tasks / g.hkv;
        f.kv_head = entry / head_tasks % g.hkv;
        f.head = f.kv_head * group + first;
        f.query = query;
        f.queries = n;
        f.run();
    });
}
