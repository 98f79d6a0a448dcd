// The vjp of attention.h: p again from lse, then dv = p^T dout, dp = dout v^T, ds = p (dp - delta), dq = scale ds k, dk = scale ds^T q
// (backward from lse: Dao et al. 2022).
//
// A task owns one head of one entry and a part of the keys (how many parts depends on Tk alone): it writes dk, dv of these (one partial for
// each head of a group, added in order of heads afterwards) and a partial of dq (added in order of keys). Where a bias is broadcast, one
// task takes all that shares its gradient, in order.

constexpr index_t VJP_QUERIES = 32;  // query rows of a tile
constexpr index_t VJP_KEYS = 96;     // keys of a tile
constexpr index_t VJP_TILES = 10;    // key tiles of a task, at least
constexpr index_t VJP_PARTS = 4;     // tasks along the keys, at most: each holds a dq of its own
constexpr index_t VJP_PARTIALS = 8 << 20;  // floats of partial sums held at once (32 MB), unless one head has more
static_assert(VJP_KEYS % PANEL == 0 && VJP_QUERIES % GROUP == 0, "whole panels and groups");

template <bool PAIRS>
struct Backward {
    static constexpr index_t TILE_GROUPS = VJP_QUERIES / GROUP;
    const AttentionArgs& g;
    index_t dp, lp;                        // floats and lanes of a row
    float *q, *dout;                       // (VJP_QUERIES, dp) rows of the tile, q scaled; rows that see nothing are 0
    float *q_lanes, *dout_lanes;           // the same as lanes along d,
    float *q_pairs, *dout_pairs;           // and along the rows
    float *keys, *values, *k_rows, *copy;  // K^T and V^T as panels; scale * K as rows
    float *p, *ds;                         // (VJP_QUERIES, VJP_KEYS); of pairs: along keys
    float *p_pairs, *ds_pairs;             // along queries
    float *dk, *dv, *delta, *lse;          // (VJP_KEYS, dp); (Tq,), lse in units of log 2
    float* words;                          // (VJP_KEYS,): see Kept
    int32_t* segments;
    Extent* extents;
    bool* begun;  // dq of this group of queries holds something
    View views[TILE_GROUPS];

    explicit Backward(const AttentionArgs& args) : g(args), dp(whole(args.d)), lp(whole(lanes_of<PAIRS>(args.d))) {
        Carver measure{nullptr};
        carve(measure);
        Carver pieces{static_cast<char*>(scratch(3, measure.used))};
        carve(pieces);
    }

    void carve(Carver& c) {
        q_lanes = q_pairs = q = c.take<float>(VJP_QUERIES * dp);
        dout_lanes = dout_pairs = dout = c.take<float>(VJP_QUERIES * dp);
        keys = c.take<float>(VJP_KEYS * g.d);
        values = c.take<float>(VJP_KEYS * g.d);
        k_rows = c.take<float>(VJP_KEYS * dp);
        copy = c.take<float>(VJP_KEYS * dp);
        p_pairs = p = c.take<float>(VJP_QUERIES * VJP_KEYS);
        ds_pairs = ds = c.take<float>(VJP_QUERIES * VJP_KEYS);
        if (PAIRS) {
            q_lanes = c.take<float>(VJP_QUERIES * lp);
            dout_lanes = c.take<float>(VJP_QUERIES * lp);
            q_pairs = c.take<float>(VJP_QUERIES / 2 * dp);
            dout_pairs = c.take<float>(VJP_QUERIES / 2 * dp);
            p_pairs = c.take<float>(VJP_QUERIES / 2 * VJP_KEYS);
            ds_pairs = c.take<float>(VJP_QUERIES / 2 * VJP_KEYS);
        }
        dk = c.take<float>(VJP_KEYS * dp);
        dv = c.take<float>(VJP_KEYS * dp);
        delta = c.take<float>(g.tq);
        lse = c.take<float>(g.tq);
        words = c.take<float>(VJP_KEYS);
        segments = c.take<int32_t>(VJP_KEYS + W);
        extents = c.take<Extent>((g.tq + GROUP - 1) / GROUP);
        begun = c.take<bool>((g.tq + GROUP - 1) / GROUP);
    }

    // Keys [begin, end) of one entry and head; dq, dk, dv of that head, rows their strides apart.
    void run(index_t b, index_t h, index_t begin, index_t end, float* dq, index_t dq_row, float* dk_out, index_t dk_row, float* dv_out,
             index_t dv_row) {
        for (index_t i = 0; i < g.tq; ++i) {
            const index_t at = ((b * g.tq + i) * g.h + h) * g.d;
            const float x = g.lse[(b * g.h + h) * g.tq + i];
            const bool blind = x == -__builtin_inff();
            fetch(g.dout + at, g.h * g.d, AHEAD, g.tq - i, g.d);
            fetch(g.out + at, g.h * g.d, AHEAD, g.tq - i, g.d);
            lse[i] = blind ? __builtin_inff() : x * LOG2_E;  // then p is 0
            V total{};
            for (index_t j = 0; j < g.d; j += W) total = load_left(g.dout + at + j, g.d - j) * load_left(g.out + at + j, g.d - j) + total;
            delta[i] = blind ? 0.0f : sum(total);
        }
        for (index_t i = 0; i < g.tq; i += GROUP) {
            extents[i / GROUP] = extent(g, b, i, std::min(GROUP, g.tq - i));
            begun[i / GROUP] = false;
        }
        for (index_t key = begin; key < end; key += VJP_KEYS) {
            const KeyTile t(g, b, key, std::min(VJP_KEYS, end - key), segments, words);
            for (index_t i = 0; i < t.n; ++i) {
                fetch<true>(dk_out + key * dk_row, dk_row, i, t.n, g.d);
                fetch<true>(dv_out + key * dv_row, dv_row, i, t.n, g.d);
            }
            key_tile(t, b, h, dq, dq_row);
            for (index_t i = 0; i < t.n; ++i)
                for (index_t j = 0; j < g.d; j += W) {
                    const index_t n = std::min<index_t>(W, g.d - j);
                    store_n(dk_out + (key + i) * dk_row + j, load(dk + i * dp + j) * LN_2, n);
                    store_n(dv_out + (key + i) * dv_row + j, load(dv + i * dp + j), n);
                }
        }
        for (index_t i = 0; i < g.tq; ++i)
            if (!begun[i / GROUP]) std::fill_n(dq + i * dq_row, g.d, 0.0f);
    }

    void key_tile(const KeyTile& t, index_t b, index_t h, float* dq, index_t dq_row) {
        std::fill_n(dk, t.n * dp, 0.0f);
        std::fill_n(dv, t.n * dp, 0.0f);
        bool packed = false, finite = true;
        for (index_t i = 0; i < g.tq; i += VJP_QUERIES) {
            const index_t rows = std::min(VJP_QUERIES, g.tq - i);
            bool seen = false;
            for (index_t r = 0; r < rows; r += GROUP) {
                views[r / GROUP] = view(extents[(i + r) / GROUP], t);
                seen |= !views[r / GROUP].empty();
            }
            if (!seen) continue;
            if (!packed) {
                const index_t kv_head = h / (g.h / g.hkv);
                const float* k = g.k + b * g.k_batch + t.key * g.k_row + kv_head * g.k_head;
                pack_keys<PAIRS>(k, g.k_row, t.n, g.d, keys);
                pack_keys<PAIRS>(g.v + b * g.v_batch + t.key * g.v_row + kv_head * g.v_head, g.v_row, t.n, g.d, values);
                finite = stack_rows<PAIRS>(k, g.k_row, t.n, g.d, g.scale, k_rows, dp);
                packed = true;
            }
            lay_queries(b, h, i, rows, dq, dq_row);
            scores_of<PAIRS>(views, q_lanes, PAIRS ? lp : dp, rows, keys, g.d, p, VJP_KEYS);
            scores_of<PAIRS>(views, dout_lanes, PAIRS ? lp : dp, rows, values, g.d, ds, VJP_KEYS);
            for (index_t r = 0; r < rows; r += PAIRS ? 2 : 1) softmax_rows(t, b, h, i + r, std::min<index_t>(PAIRS ? 2 : 1, rows - r), r);
            for (index_t j = 0; j < t.n; j += GROUP) add_to_keys(j, std::min(GROUP, t.n - j), rows);
            for (index_t r = 0; r < rows; r += GROUP)
                add_to_queries(i + r, r, std::min(GROUP, rows - r), dq + (i + r) * dq_row, dq_row, finite);
        }
    }

    void lay_queries(index_t b, index_t h, index_t i, index_t rows, const float* dq, index_t dq_row) {
        const float *q_from = g.q + b * g.q_batch + h * g.d, *dout_from = g.dout + (b * g.tq * g.h + h) * g.d;
        for (index_t r = 0; r < rows; ++r) {
            fetch(q_from, g.q_row, i + r + VJP_QUERIES, g.tq, g.d);  // of the next tile
            fetch(dout_from, g.h * g.d, i + r + VJP_QUERIES, g.tq, g.d);
            fetch<true>(dq, dq_row, i + r, g.tq, g.d);
            if (lse[i + r] == __builtin_inff()) {  // whatever stands there, it has no part in anything
                std::fill_n(q + r * dp, dp, 0.0f);
                std::fill_n(dout + r * dp, dp, 0.0f);
            } else {
                lay_rows<false>(q_from + (i + r) * g.q_row, 0, 1, g.d, g.scale * LOG2_E, q + r * dp, dp);
                lay_rows<false>(dout_from + (i + r) * g.h * g.d, 0, 1, g.d, 1.0f, dout + r * dp, dp);
            }
        }
        if (!PAIRS) return;
        lay_rows<PAIRS>(q, dp, rows, dp, 1.0f, q_lanes, lp);
        lay_rows<PAIRS>(dout, dp, rows, dp, 1.0f, dout_lanes, lp);
        stack_rows<PAIRS>(q, dp, rows, dp, 1.0f, q_pairs, dp);
        stack_rows<PAIRS>(dout, dp, rows, dp, 1.0f, dout_pairs, dp);
    }

    // Scores of query i (and i + 1 of pairs), row r of the tile, become p, their dp becomes ds.
    void softmax_rows(const KeyTile& t, index_t b, index_t h, index_t i, index_t n, index_t r) {
        const View& s = views[r / GROUP];
        if (s.empty()) return;
        constexpr int ROWS = PAIRS ? 2 : 1;
        const bool drops = g.drop != 0;
        const float scale = kept_scale(g);
        Mask mask[ROWS];
        Kept kept[ROWS];
        const float* bias[ROWS];
        for (index_t m = 0; m < n; ++m) {
            mask[m] = Mask(sight(g, b, i + m), t, s);
            kept[m] = Kept(g, b, h, i + m, words);
            bias[m] = bias_row(g, b, h, i + m, t.key);
        }
        const auto one = [&](index_t m, index_t j, V& y, V& dy) {
            y = exp2_of_negative(biased(load(p + (r + m) * VJP_KEYS + j), j, bias[m], t.n) - lse[i + m]);
            dy = load(ds + (r + m) * VJP_KEYS + j);
            if (drops) dy = kept[m](dy * scale, j);
            dy = y * (dy - delta[i + m]);
            if (drops) y = kept[m](y * scale, j);
            if (!mask[m].shows_all(j)) {
                const VI shown = mask[m](j);
                y = shown ? y : V{};
                dy = shown ? dy : V{};
            }
            if (!g.dbias) return;
            float* to = g.dbias + b * g.bias_b + h * g.bias_h + (i + m) * g.bias_q + t.key + j;
            const index_t left = std::min<index_t>(W, t.n - j);
            store_n(to, load_n(to, left) + dy, left);
        };
        if constexpr (PAIRS) {
            for (index_t j = s.first(); j < s.last(); j += 2 * W) {
                V y[2][2] = {}, dy[2][2] = {};
                const index_t halves = j + W < s.last() ? 2 : 1;
                for (index_t half = 0; half < halves; ++half) {
                    for (index_t m = 0; m < n; ++m) one(m, j + half * W, y[m][half], dy[m][half]);
                    store(p_pairs + r / 2 * VJP_KEYS + j + half * W, reinterpret_cast<V>(bf16_pair(y[0][half], y[1][half])));
                    store(ds_pairs + r / 2 * VJP_KEYS + j + half * W, reinterpret_cast<V>(bf16_pair(dy[0][half], dy[1][half])));
                }
                for (index_t m = 0; m < n; ++m) store(ds + (r + m) * VJP_KEYS + j / 2, reinterpret_cast<V>(bf16_row(dy[m][0], dy[m][1])));
            }
        } else {
            for (index_t j = s.first(); j < s.last(); j += W) {
                V y, dy;
                one(0, j, y, dy);
                store(p + r * VJP_KEYS + j, y);
                store(ds + r * VJP_KEYS + j, dy);
            }
        }
    }

    // dv, dk of the n keys at column j of the tile: runs of groups of queries that see some of them.
    void add_to_keys(index_t j, index_t n, index_t rows) {
        const auto sees = [&](index_t r) {
            const View& s = views[r / GROUP];
            return !s.empty() && s.first() < j + n && j < s.last();
        };
        for (index_t r = 0; r < rows;) {
            const index_t first = r;
            while (r < rows && sees(r)) r += GROUP;
            const index_t at = first / (PAIRS ? 2 : 1), steps = lanes_of<PAIRS>(std::min(r, rows)) - at;
            if (r > first) {
                times<PAIRS>(n, p_pairs + at * VJP_KEYS + j, 1, VJP_KEYS, dout_pairs + at * dp, dp, steps, dv + j * dp, dp, dp, true);
                times<PAIRS>(n, ds_pairs + at * VJP_KEYS + j, 1, VJP_KEYS, q_pairs + at * dp, dp, steps, dk + j * dp, dp, dp, true);
            }
            while (r < rows && !sees(r)) r += GROUP;
        }
    }

    // dq of n queries i, ..., row r, ... of the tile
    void add_to_queries(index_t i, index_t r, index_t n, float* dq, index_t dq_row, bool finite) {
        const View& s = views[r / GROUP];
        if (s.empty()) return;
        const index_t first = PAIRS ? s.begin / 2 : s.begin, steps = lanes_of<PAIRS>(s.end) - first;
        const float *from = ds + r * VJP_KEYS + first, *k = k_rows + first * dp;
        if (!finite && !begun[i / GROUP])
            for (index_t m = 0; m < n; ++m) std::fill_n(dq + m * dq_row, g.d, 0.0f);
        if (finite)
            times<PAIRS>(n, from, VJP_KEYS, 1, k, dp, steps, dq, dq_row, g.d, begun[i / GROUP]);
        else
            times_hiding<PAIRS>(n, from, VJP_KEYS, k, dp, steps, dq, dq_row, g.d, copy);
        begun[i / GROUP] = true;
    }
};

// to:(n, d) rows to_row apart = or, where `add`, += the sum of `parts` arrays (n, d), from, from + step, ..., in order.
static void sum_parts(const float* from, index_t step, index_t parts, bool add, float* to, index_t to_row, index_t n, index_t d) {
    for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < d; j += W) {
            const index_t lanes = std::min<index_t>(W, d - j);
            V total = load_n(from + i * d + j, lanes);
            if (add) total = load_n(to + i * to_row + j, lanes) + total;
            for (index_t part = 1; part < parts; ++part) total = total + load_n(from + part * step + i * d + j, lanes);
            store_n(to + i * to_row + j, total, lanes);
        }
}

template <bool PAIRS>
static void attention_vjp_of(const AttentionArgs& g) {
    if (!g.b || !g.h) return;
    const index_t group = g.h / g.hkv, heads = g.b * g.h, tiles = (g.tk + VJP_KEYS - 1) / VJP_KEYS;
    const index_t parts = std::clamp<index_t>(tiles / VJP_TILES, 1, VJP_PARTS), keys = (tiles + parts - 1) / parts * VJP_KEYS;
    const bool share_b = g.dbias && g.bias_b == 0, share_h = g.dbias && g.bias_h == 0;
    const index_t b_tasks = share_b ? 1 : g.b, h_tasks = share_h ? 1 : g.h;
    // Partials, of as many heads at a time as have room: dq:(heads, parts, Tq, D), dk, dv:(heads, Tk, D), none where the only one is the
    // result.
    const index_t dq_size = parts > 1 ? parts * g.tq * g.d : 0, dk_size = group > 1 ? g.tk * g.d : 0, size = dq_size + 2 * dk_size;
    const index_t at_once = size ? std::clamp<index_t>(VJP_PARTIALS / size, 1, heads) : heads;
    float* dq = size ? static_cast<float*>(scratch(5, sizeof(float) * at_once * size)) : nullptr;
    float *dk = dq + at_once * dq_size, *dv = dk + at_once * dk_size;
    for (index_t first = 0; first < heads; first += at_once) {
        const index_t last = std::min(heads, first + at_once);
        parallel_for(b_tasks * h_tasks * parts, [&](index_t task) {
            Backward<PAIRS> f(g);
            const index_t part = task / (b_tasks * h_tasks), b0 = task / h_tasks % b_tasks, h0 = task % h_tasks;
            for (index_t b = b0; b < (share_b ? g.b : b0 + 1); ++b)
                for (index_t h = h0; h < (share_h ? g.h : h0 + 1); ++h) {
                    const index_t head = b * g.h + h, i = head - first, kv_head = h / group;
                    if (head < first || head >= last) continue;
                    f.run(b, h, std::min(g.tk, part * keys), std::min(g.tk, (part + 1) * keys),
                          dq_size ? dq + i * dq_size + part * g.tq * g.d : g.dq + b * g.dq_batch + h * g.d, dq_size ? g.d : g.dq_row,
                          dk_size ? dk + i * dk_size : g.dk + b * g.dk_batch + kv_head * g.d, dk_size ? g.d : g.dk_row,
                          dk_size ? dv + i * dk_size : g.dv + b * g.dv_batch + kv_head * g.d, dk_size ? g.d : g.dv_row);
                }
        });
        if (dq_size)
            parallel_for(last - first, [&](index_t i) {
                const index_t b = (first + i) / g.h, h = (first + i) % g.h;
                sum_parts(dq + i * dq_size, g.tq * g.d, parts, false, g.dq + b * g.dq_batch + h * g.d, g.dq_row, g.tq, g.d);
            });
        if (dk_size)
            parallel_for((last - 1) / group - first / group + 1, [&](index_t i) {
                const index_t entry = first / group + i, b = entry / g.hkv, kv_head = entry % g.hkv;
                const index_t from = std::max(first, entry * group), n = std::min(last, (entry + 1) * group) - from;
                const bool add = from > entry * group;
                sum_parts(dk + (from - first) * dk_size, dk_size, n, add, g.dk + b * g.dk_batch + kv_head * g.d, g.dk_row, g.tk, g.d);
                sum_parts(dv + (from - first) * dk_size, dk_size, n, add, g.dv + b * g.dv_batch + kv_head * g.d, g.dv_row, g.tk, g.d);
            });
    }
}
