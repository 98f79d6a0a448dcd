// The language-model head and its loss: logits x = h w^T + b, cross-entropy, dh = dx w, dw = dx^T h, without ever holding (N, V) logits.
//
// Bound: FMA, if w and dw (both larger than the caches) pass by rarely and unpacked. So logits lie transposed, (V, rows): w is the left
// operand, read where it lies; the right one, a chunk of h, is packed once and stays in L2. Softmax runs down the columns of x, in the
// registers' lanes, a block of the vocabulary at a time while it is in L1: e^(x - top of the block) is all that is kept, and one factor
// for each block and row turns it into probabilities later.
//
// The bits of a row's loss and dh follow from V alone: blocks, parts and chunks do.

constexpr index_t HEAD_BLOCK = 32;  // vocabulary rows that share a maximum
constexpr index_t HEAD_TASK = 96;   // vocabulary rows of dx that stay in L2 while dw and dh are made of them
constexpr index_t HEAD_ROWS = 128;  // rows of h in a chunk: (rows, C) stays in L2

static void fetch_tile(const float* c, index_t c_row, index_t rows, index_t cols) {
    for (index_t i = 0; i < rows; ++i)
        for (index_t j = 0; j < cols; j += 16) __builtin_prefetch(c + i * c_row + j, 1);
}

// Columns [0, n) of rows [0, kc) as the panels of Panels(n), one behind the other.
template <class T>
static void pack_columns(const float* src, index_t k_step, index_t j_step, index_t kc, index_t n, float* dst) {
    const Panels panels(n);
    for (index_t p = 0; p < panels.count; ++p) {
        const index_t col = panels.begin(p), width = panels.width(p) * W;
        pack_panel<T>(src + col * j_step, k_step, j_step, kc, std::min(width, n - col), width, dst + col * lanes_of(kc, T::DEPTH));
    }
}

template <class T>
struct Head {
    static constexpr index_t D = T::DEPTH;
    const HeadArgs& g;
    index_t rows, blocks, parts, per_part, group;  // rows of a chunk; blocks and parts of the vocabulary; chunks at a time
    index_t first = 0, chunks = 0;                 // of the group at hand: its first row, how many chunks
    float *x, *top, *sum, *spread;                 // (group, V, rows); (group, blocks, rows): largest, sum of e^(x - top), sum of x
    float *chosen, *partial;                       // (group, rows) logit of the target; (group, parts, rows, C) of dh
    float *turned, *straight;                      // h^T and h as panels, width floats a chunk each
    index_t width;

    explicit Head(const HeadArgs& args) : g(args) {
        rows = g.v < 2048 ? HEAD_ROWS / 2 : HEAD_ROWS;
        while (rows > HEAD_ROWS / 4 && rows * g.v > g.budget) rows -= HEAD_ROWS / 4;
        blocks = (g.v + HEAD_BLOCK - 1) / HEAD_BLOCK;
        parts = std::clamp<index_t>(g.v / 2048, 1, 8);
        per_part = ((g.v + parts - 1) / parts + HEAD_TASK - 1) / HEAD_TASK * HEAD_TASK;
        group = std::clamp<index_t>(g.budget / (rows * g.v), 1, (g.n + rows - 1) / rows);
        width = rows * ((g.c + W - 1) / W * W);
        Carver measure{nullptr};
        carve(measure);
        Carver pieces{static_cast<char*>(scratch(6, measure.used))};
        carve(pieces);
    }

    void carve(Carver& c) {
        x = c.take<float>(group * g.v * rows);
        top = c.take<float>(group * blocks * rows);
        sum = c.take<float>(group * blocks * rows);
        spread = c.take<float>(g.label_smoothing ? group * blocks * rows : 0);
        chosen = c.take<float>(group * rows);
        turned = c.take<float>(group * width);
        straight = c.take<float>(g.dw ? group * width : 0);
        partial = c.take<float>(g.dh && parts > 1 ? group * parts * rows * g.c : 0);
    }

    index_t begin(index_t chunk) const { return first + chunk * rows; }                             // its first row of h
    index_t count(index_t chunk) const { return std::min(rows, g.n - begin(chunk)); }               // its rows
    int32_t target(index_t chunk, index_t r) const { return r < count(chunk) ? g.targets[begin(chunk) + r] : -1; }

    void run() {
        for (first = 0; first < g.n; first += group * rows) {
            chunks = std::min(group, (g.n - first + rows - 1) / rows);
            parallel_for(chunks, [&](index_t chunk) { pack(chunk); });
            const index_t tasks = (g.v + 8 * HEAD_TASK - 1) / (8 * HEAD_TASK);
            parallel_for(chunks * tasks, [&](index_t task) {
                const index_t v = task % tasks * 8 * HEAD_TASK;
                for (index_t at = v; at < std::min(g.v, v + 8 * HEAD_TASK); at += HEAD_BLOCK)
                    logits(task / tasks, at, std::min(HEAD_BLOCK, g.v - at));
            });
            parallel_for(chunks, [&](index_t chunk) { losses(chunk); });
            const index_t slice = std::clamp<index_t>(g.v / 64 / R_MAX * R_MAX, R_MAX, HEAD_TASK);
            if (g.dw || g.db) parallel_ranges(g.v, slice, [&](index_t v, index_t end) {
                for (index_t chunk = 0; chunk < chunks; ++chunk) gradient(chunk, v, end - v);
            });
            if (!g.dh) continue;
            parallel_for(chunks * parts, [&](index_t task) { hidden(task / parts, task % parts); });
            if (parts > 1) parallel_for(chunks, [&](index_t chunk) { add_parts(chunk); });
        }
    }

    void pack(index_t chunk) {
        const float* h = g.h + begin(chunk) * g.c;
        for (index_t k = 0; k < g.c; k += KC)
            pack_columns<T>(h + k, 1, g.c, std::min(KC, g.c - k), count(chunk),
                            turned + chunk * width + Panels(count(chunk)).vectors * W * (k / D));
        if (g.dw) pack_columns<T>(h, g.c, 1, count(chunk), g.c, straight + chunk * width);
    }

    // Rows of a left operand as the tile takes them: where they lie, or rounded beside; `step` becomes the distance of two.
    static const float* rounded(const float* a, index_t r, index_t kc, index_t& step) {
        if (!T::ROUNDS) return a;
        float* packed = static_cast<float*>(scratch(7, sizeof(float) * R_MAX * KC));
        pack_rows<T>(a, step, r, kc, packed);
        step = lanes_of(kc, D);
        return packed;
    }

    // Logits of n vocabulary rows from v on, then their exponentials.
    void logits(index_t chunk, index_t v, index_t n) {
        const Panels panels(count(chunk));
        float* to = x + (chunk * g.v + v) * rows;
        Ahead next(g.w + (v + n) * g.c, g.c, std::min(n, g.v - v - n), g.c, tiles_of(n, panels));
        for (index_t k = 0; k < g.c; k += KC) {
            const index_t kc = std::min(KC, g.c - k), lanes = lanes_of(kc, D);
            const float* b = turned + chunk * width + panels.vectors * W * (k / D);
            for (index_t i = 0, r; i < n; i += r) {
                r = rows_at(n - i);
                index_t step = g.c;
                const float* a = rounded(g.w + (v + i) * g.c + k, r, kc, step);
                for (index_t p = 0; p < panels.count; ++p) {
                    const index_t col = panels.begin(p), cols = panels.width(p) * W;
                    next.fetch();
                    tile_of_rows<T>(int(r), panels.width(p), a, step, 1, b + col * lanes, cols, lanes, to + i * rows + col, rows, cols,
                                          k > 0);
                }
            }
        }
        if (g.b)
            for (index_t i = 0; i < n; ++i)
                for (index_t j = 0; j < rows; j += W) store(to + i * rows + j, load(to + i * rows + j) + g.b[v + i]);
        for (index_t r = 0; r < count(chunk); ++r) {
            const index_t at = target(chunk, r) - v;
            if (at >= 0 && at < n) chosen[chunk * rows + r] = to[at * rows + r];
        }
        const index_t block = (chunk * blocks + v / HEAD_BLOCK) * rows;
        for (index_t j = 0; j < panels.vectors * W; j += W) {
            V most = load(to + j), total{}, all{};
            for (index_t i = 1; i < n; ++i) most = vmax(most, load(to + i * rows + j));
            const V shift = most == -__builtin_inff() ? V{} : most;
            for (index_t i = 0; i < n; ++i) {
                const V y = load(to + i * rows + j), e = exp(y - shift);
                all += y;
                total += e;
                store(to + i * rows + j, e);
            }
            store(top + block + j, most);
            store(sum + block + j, total);
            if (g.label_smoothing) store(spread + block + j, all);
        }
    }

    // The losses of a chunk; `top` becomes the factor that turns e^(x - top) into (1 + 2 z lse) p.
    void losses(index_t chunk) {
        float *most = top + chunk * blocks * rows, *sums = sum + chunk * blocks * rows;
        for (index_t j = 0; j < count(chunk); j += W) {
            V high = load(most + j), total{}, all{};
            for (index_t b = 1; b < blocks; ++b) high = vmax(high, load(most + b * rows + j));
            const V shift = high == -__builtin_inff() ? V{} : high;
            for (index_t b = 0; b < blocks; ++b) {
                const V share = exp(load(most + b * rows + j) - shift);
                total += load(sums + b * rows + j) * share;
                if (g.label_smoothing) all += load(spread + (chunk * blocks + b) * rows + j);
                store(most + b * rows + j, share);
            }
            V factor{};
            for (index_t lane = 0; lane < std::min<index_t>(W, count(chunk) - j); ++lane) {
                const float log_total = std::log(total[lane]), lse = shift[lane] + log_total, s = g.label_smoothing;
                const float near = chosen[chunk * rows + j + lane] - shift[lane], mean = all[lane] / float(g.v) - shift[lane];
                const bool counts = target(chunk, j + lane) >= 0;
                g.loss[begin(chunk) + j + lane] =
                    counts ? log_total - (1.0f - s) * near - (s ? s * mean : 0.0f) + g.z_loss * lse * lse : 0.0f;
                factor[lane] = (1.0f + 2.0f * g.z_loss * lse) / total[lane];
            }
            for (index_t b = 0; b < blocks; ++b) store(most + b * rows + j, load(most + b * rows + j) * factor);
        }
    }

    // dx of n vocabulary rows from v on, and of it dw and db.
    void gradient(index_t chunk, index_t v, index_t n) {
        float* dx = x + (chunk * g.v + v) * rows;
        const index_t m = count(chunk);
        const bool add = first + chunk > 0;
        int32_t counts[HEAD_ROWS + W] = {};
        for (index_t r = 0; r < m; ++r) counts[r] = target(chunk, r) >= 0 ? -1 : 0;
        const float share = g.label_smoothing / float(g.v);
        for (index_t i = 0; i < n; ++i) {
            const float* factor = top + (chunk * blocks + (v + i) / HEAD_BLOCK) * rows;
            for (index_t j = 0; j < m; j += W)  // what stands in a row that is ignored, NaN even, goes no further
                store(dx + i * rows + j,
                      *reinterpret_cast<const VIMem*>(counts + j) ? load(dx + i * rows + j) * load(factor + j) - share : V{});
        }
        for (index_t r = 0; r < m; ++r) {
            const index_t at = target(chunk, r) - v;
            if (at >= 0 && at < n) dx[at * rows + r] -= 1.0f - g.label_smoothing;
        }
        if (g.db)
            for (index_t i = 0; i < n; ++i) {
                const float total = row_sum(m, [&](index_t j, index_t lanes) { return load_n(dx + i * rows + j, lanes); });
                g.db[v + i] = add ? g.db[v + i] + total : total;
            }
        if (!g.dw) return;
        const Panels panels(g.c);
        Ahead next(dx + n * rows, rows, std::min(n, g.v - v - n), rows, tiles_of(n, panels));
        for (index_t i = 0, r; i < n; i += r) {
            r = rows_at(n - i);
            index_t step = rows;
            const float* a = rounded(dx + i * rows, r, m, step);
            for (index_t p = 0; p < panels.count; ++p) {
                const index_t col = panels.begin(p), cols = std::min<index_t>(panels.width(p) * W, g.c - col);
                float* to = g.dw + (v + i) * g.c + col;
                if (add) fetch_tile(to, g.c, r, cols);
                next.fetch();
                tile_of_rows<T>(int(r), panels.width(p), a, step, 1, straight + chunk * width + col * lanes_of(m, D),
                                      panels.width(p) * W, lanes_of(m, D), to, g.c, cols, add);
            }
        }
    }

    // dh of a chunk, as much of it as comes from a part of the vocabulary.
    void hidden(index_t chunk, index_t part) {
        const index_t m = count(chunk), end = std::min(g.v, (part + 1) * per_part);
        const Panels panels(g.c);
        float* to = parts > 1 ? partial + (chunk * parts + part) * rows * g.c : g.dh + begin(chunk) * g.c;
        float* packed = static_cast<float*>(scratch(7, sizeof(float) * HEAD_TASK * (NV_MAX * W + HEAD_ROWS)));
        float* a = packed + HEAD_TASK * NV_MAX * W;
        for (index_t v = part * per_part; v < end; v += HEAD_TASK) {
            const index_t n = std::min(HEAD_TASK, end - v), lanes = lanes_of(n, D), left = std::min(HEAD_TASK, end - v - n);
            const float *w = g.w + v * g.c, *dx = x + (chunk * g.v + v) * rows;
            if (!g.dw && !g.db) gradient(chunk, v, n);  // a frozen head: dx is made where it is used
            Ahead next_w(w + n * g.c, g.c, left, g.c, tiles_of(m, panels)), next_x(dx + n * rows, rows, left, rows, tiles_of(m, panels));
            pack_turned_rows<T>(dx, rows, m, n, a);
            for (index_t p = 0; p < panels.count; ++p) {
                const index_t col = panels.begin(p), cols = std::min<index_t>(panels.width(p) * W, g.c - col);
                pack_panel<T>(w + col, g.c, 1, n, cols, panels.width(p) * W, packed);
                for (index_t i = 0, r; i < m; i += r) {
                    r = rows_at(m - i);
                    next_w.fetch();
                    next_x.fetch();
                    fetch_tile(to + i * g.c + col, g.c, r, cols);
                    tile_of_rows<T>(int(r), panels.width(p), a + i / R_MAX * R_MAX * lanes + i % R_MAX, 1, R_MAX, packed,
                                           panels.width(p) * W, lanes, to + i * g.c + col, g.c, cols, v > part * per_part);
                }
            }
        }
    }

    void add_parts(index_t chunk) {
        const index_t step = rows * g.c, used = (g.v + per_part - 1) / per_part;
        each_vector(count(chunk) * g.c, [&](index_t j, index_t lanes) {
            V total = load_n(partial + chunk * parts * step + j, lanes);
            for (index_t part = 1; part < used; ++part) total += load_n(partial + (chunk * parts + part) * step + j, lanes);
            store_n(g.dh + begin(chunk) * g.c + j, total, lanes);
        });
    }
};

template <class T>
static void linear_cross_entropy_of(const HeadArgs& g) {
    if (g.n == 0) {
        if (g.dw) std::fill_n(g.dw, g.v * g.c, 0.0f);
        if (g.db) std::fill_n(g.db, g.v, 0.0f);
        return;
    }
    Head<T>(g).run();
}
