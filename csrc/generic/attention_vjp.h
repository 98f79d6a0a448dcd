// The vjp of attention.h: p again from lse, then dv = p^T dout, dp = dout v^T, ds = p (dp - delta), dq = scale ds k, dk = scale ds^T q.
//
// A task owns one head of one entry and a part of the keys (how many parts depends on Tk alone): it writes dk, dv of these (one partial for
// each head of a group, added in order of heads afterwards) and a partial of dq (added in order of keys). Where a bias is broadcast, one
// task takes all that shares its gradient, in order.

struct Backward {
    const AttentionArgs& g;
    index_t dp;
    float *q, *dout, *delta, *dk, *dv;
    float *keys, *values, *k_rows, *copy;  // K^T and V^T as panels; scale * K as rows
    float *p, *ds;
    int32_t* segments;
    Sight* sights;

    explicit Backward(const AttentionArgs& args) : g(args), dp((args.d + W - 1) / W * W) {
        Carver measure{nullptr};
        carve(measure);
        Carver pieces{static_cast<char*>(scratch(3, measure.used))};
        carve(pieces);
    }

    void carve(Carver& c) {
        q = c.take<float>(VJP_QUERIES * dp);
        dout = c.take<float>(VJP_QUERIES * dp);
        delta = c.take<float>(g.tq);
        dk = c.take<float>(VJP_KEYS * dp);
        dv = c.take<float>(VJP_KEYS * dp);
        keys = c.take<float>(VJP_KEYS * g.d);
        values = c.take<float>(VJP_KEYS * g.d);
        k_rows = c.take<float>(VJP_KEYS * dp);
        copy = c.take<float>(VJP_KEYS * dp);
        p = c.take<float>(VJP_QUERIES * VJP_KEYS);
        ds = c.take<float>(VJP_QUERIES * VJP_KEYS);
        segments = c.take<int32_t>(VJP_KEYS + W);
        sights = c.take<Sight>(g.tq);
    }

    // Keys [begin, end) of one entry and head; dq, dk, dv of that head, rows their strides apart.
    void run(index_t b, index_t h, index_t begin, index_t end, float* dq, index_t dq_row, float* dk_out, index_t dk_row, float* dv_out,
             index_t dv_row) {
        const float* lse = g.lse + (b * g.h + h) * g.tq;
        for (index_t i = 0; i < g.tq; ++i) {
            const index_t at = ((b * g.tq + i) * g.h + h) * g.d;
            V total{};
            for (index_t j = 0; j < g.d; j += W) {
                const index_t n = std::min<index_t>(W, g.d - j);
                total = load_n(g.dout + at + j, n) * load_n(g.out + at + j, n) + total;
            }
            delta[i] = sum(total);
            sights[i] = sight(g, b, i);
            if (lse[i] == -__builtin_inff()) sights[i] = Sight{};
            std::fill_n(dq + i * dq_row, g.d, 0.0f);
        }
        const index_t kv_head = h / (g.h / g.hkv);
        for (index_t key = begin; key < end; key += VJP_KEYS) {
            const index_t n = std::min(VJP_KEYS, end - key);
            key_tile(b, h, kv_head, key, n, dq, dq_row);
            for (index_t i = 0; i < n; ++i) {
                std::memcpy(dk_out + (key + i) * dk_row, dk + i * dp, g.d * sizeof(float));
                std::memcpy(dv_out + (key + i) * dv_row, dv + i * dp, g.d * sizeof(float));
            }
        }
    }

    void key_tile(index_t b, index_t h, index_t kv_head, index_t key, index_t n, float* dq, index_t dq_row) {
        std::fill_n(dk, n * dp, 0.0f);
        std::fill_n(dv, n * dp, 0.0f);
        if (g.k_segments) {
            std::copy_n(g.k_segments + b * g.tk + key, n, segments);
            std::fill_n(segments + n, VJP_KEYS + W - n, 0);
        }
        bool packed = false, finite = true;
        for (index_t i = 0; i < g.tq; i += VJP_QUERIES) {
            const index_t rows = std::min(VJP_QUERIES, g.tq - i);
            const View s = view(sights + i, rows, key, n, g.k_segments ? segments : nullptr);
            if (s.begin >= s.end) continue;
            if (!packed) {
                const float* k = g.k + b * g.k_batch + key * g.k_row + kv_head * g.d;
                pack_keys(k, g.k_row, n, g.d, keys);
                pack_keys(g.v + b * g.v_batch + key * g.v_row + kv_head * g.d, g.v_row, n, g.d, values);
                finite = copy_rows(k, g.k_row, n, g.d, g.scale, k_rows, dp);
                packed = true;
            }
            for (index_t r = 0; r < rows; ++r) {
                if (sights[i + r].hi == 0) {  // whatever stands there, it has no part in anything
                    std::fill_n(q + r * dp, dp, 0.0f);
                    std::fill_n(dout + r * dp, dp, 0.0f);
                } else {
                    copy_rows(g.q + b * g.q_batch + (i + r) * g.q_row + h * g.d, 0, 1, g.d, g.scale, q + r * dp, dp);
                    copy_rows(g.dout + ((b * g.tq + i + r) * g.h + h) * g.d, 0, 1, g.d, 1.0f, dout + r * dp, dp);
                }
            }
            scores_of(s, q, dp, rows, keys, g.d, p, VJP_KEYS);
            scores_of(s, dout, dp, rows, values, g.d, ds, VJP_KEYS);
            for (index_t r = 0; r < rows; ++r) softmax_row(s, b, h, i + r, key, p + r * VJP_KEYS, ds + r * VJP_KEYS);
            const index_t seen = s.end - s.begin;
            times<false>(seen, p + s.begin, VJP_KEYS, dout, dp, rows, dv + s.begin * dp, dp, dp, true);
            times<false>(seen, ds + s.begin, VJP_KEYS, q, dp, rows, dk + s.begin * dp, dp, dp, true);
            float* to = dq + i * dq_row;
            if (finite)
                times<true>(rows, ds + s.begin, VJP_KEYS, k_rows + s.begin * dp, dp, seen, to, dq_row, g.d, true);
            else
                times_hiding(rows, ds + s.begin, VJP_KEYS, k_rows + s.begin * dp, dp, seen, to, dq_row, g.d, copy, dp);
        }
    }

    // A row of scores becomes p, a row of dp becomes ds.
    void softmax_row(const View& s, index_t b, index_t h, index_t i, index_t key, float* x, float* dx) {
        if (g.bias) add_bias(s, x, bias_row(g, g.bias, b, h, i, key));
        const V lse = splat(sights[i].hi ? g.lse[(b * g.h + h) * g.tq + i] : 0.0f), d = splat(delta[i]);
        if (s.masked) {
            const int32_t* segs = s.segmented ? segments : nullptr;
            for (index_t j = s.first(); j < s.end; j += W) {
                const VI seen = visible(sights[i], key, j, segs);
                const V y = seen ? exp_of_negative(load(x + j) - lse) : V{};
                store(x + j, y);
                store(dx + j, seen ? y * (load(dx + j) - d) : V{});
            }
        } else {
            for (index_t j = s.begin; j < s.end; j += W) {
                const V y = exp_of_negative(load(x + j) - lse);
                store(x + j, y);
                store(dx + j, y * (load(dx + j) - d));
            }
        }
        if (!g.dbias) return;
        float* to = g.dbias + b * g.bias_b + h * g.bias_h + i * g.bias_q + key;
        for (index_t j = s.begin; j < s.end; j += W) {
            const index_t n = std::min<index_t>(W, s.end - j);
            store_n(to + j, load_n(to + j, n) + load_n(dx + j, n), n);
        }
    }
};

// to:(n, d) rows to_row apart = the sum of `parts` arrays (n, d), from, from + step, ..., rows from_row apart, in order.
static void sum_parts(const float* from, index_t from_row, index_t step, index_t parts, float* to, index_t to_row, index_t n, index_t d) {
    for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < d; j += W) {
            const index_t lanes = std::min<index_t>(W, d - j);
            V total = load_n(from + i * from_row + j, lanes);
            for (index_t part = 1; part < parts; ++part) total = total + load_n(from + part * step + i * from_row + j, lanes);
            store_n(to + i * to_row + j, total, lanes);
        }
}

struct Partials {  // (parts * heads of all entries, n, d), none where the only part is the result
    float* data;
    index_t head;
    Partials(Carver& c, index_t count, index_t n, index_t d) : data(count ? c.take<float>(count * n * d) : nullptr), head(n * d) {}
};

static void attention_vjp(const AttentionArgs& g) {
    if (!g.b || !g.h) return;
    const index_t group = g.h / g.hkv, heads = g.b * g.h, tiles = (g.tk + VJP_KEYS - 1) / VJP_KEYS;
    const index_t parts = std::clamp<index_t>(tiles / VJP_TILES, 1, VJP_PARTS), keys = (tiles + parts - 1) / parts * VJP_KEYS;
    Carver c{nullptr};
    for (const index_t n : {parts > 1 ? parts * heads * g.tq : 0, group > 1 ? heads * g.tk : 0, group > 1 ? heads * g.tk : 0})
        c.take<float>(n * g.d);
    c = Carver{c.used ? static_cast<char*>(scratch(5, c.used)) : nullptr};
    const Partials dq(c, parts > 1 ? parts * heads : 0, g.tq, g.d);
    const Partials dk(c, group > 1 ? heads : 0, g.tk, g.d), dv(c, group > 1 ? heads : 0, g.tk, g.d);
    const bool share_b = g.dbias && g.bias_b == 0, share_h = g.dbias && g.bias_h == 0;
    const index_t b_tasks = share_b ? 1 : g.b, h_tasks = share_h ? 1 : g.h;
    parallel_for(b_tasks * h_tasks * parts, [&](index_t task) {
        Backward f(g);
        const index_t part = task / (b_tasks * h_tasks), b0 = task / h_tasks % b_tasks, h0 = task % h_tasks;
        for (index_t b = b0; b < (share_b ? g.b : b0 + 1); ++b)
            for (index_t h = h0; h < (share_h ? g.h : h0 + 1); ++h) {
                const index_t i = b * g.h + h, kv_head = h / group;
                f.run(b, h, part * keys, std::min(g.tk, (part + 1) * keys),
                      dq.data ? dq.data + (part * heads + i) * dq.head : g.dq + b * g.dq_batch + h * g.d, dq.data ? g.d : g.dq_row,
                      dk.data ? dk.data + i * dk.head : g.dk + b * g.dk_batch + kv_head * g.d, dk.data ? g.d : g.dk_row,
                      dv.data ? dv.data + i * dv.head : g.dv + b * g.dv_batch + kv_head * g.d, dv.data ? g.d : g.dv_row);
            }
    });
    if (dq.data)
        parallel_for(heads, [&](index_t i) {
            sum_parts(dq.data + i * dq.head, g.d, heads * dq.head, parts, g.dq + i / g.h * g.dq_batch + i % g.h * g.d, g.dq_row, g.tq, g.d);
        });
    if (dk.data)
        parallel_for(g.b * g.hkv, [&](index_t i) {
            const index_t b = i / g.hkv, kv_head = i % g.hkv;
            sum_parts(dk.data + i * group * dk.head, g.d, dk.head, group, g.dk + b * g.dk_batch + kv_head * g.d, g.dk_row, g.tk, g.d);
            sum_parts(dv.data + i * group * dv.head, g.d, dv.head, group, g.dv + b * g.dv_batch + kv_head * g.d, g.dv_row, g.tk, g.d);
        });
}
