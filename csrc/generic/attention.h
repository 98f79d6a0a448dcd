// out = softmax(scale q k^T + bias) v over what each query may see, a tile of queries by a tile of keys at a time
// (online softmax: Milakov & Gimelshein 2018; Rabe & Staats 2021); its vjp stands in attention_vjp.h. Scores are in units of log 2.
//
// The bits of a query row depend on nothing but its own keys: key tiles start at fixed key indices, the sums over a part of PART keys are
// merged in order, and a key that a row may not see gives it a probability of exactly 0, which leaves every chain of FMAs as it was. So
// what a group of rows does not see is skipped, parts may be tasks of their own, and any Tq, batch or number of threads gives the same row.
//
// Bound: FMA. A panel of packed keys stays in L1 while the rows of a tile pass by, packed keys and values in L2.

constexpr index_t KEYS = 240;       // keys of a tile, whole panels for every W
constexpr index_t PART = 4 * KEYS;  // keys whose sums are merged at once
constexpr index_t QUERIES = 96;     // query rows of a tile
constexpr index_t FEW = 4;          // rows, of one group, for which keys are read where they lie
constexpr index_t TASK_ROWS = 256;  // query rows that share a packed key tile
constexpr index_t ENOUGH = 32;      // tasks from which on the keys need not be shared out as well
static_assert(KEYS % PANEL == 0 && QUERIES % W == 0 && QUERIES % GROUP == 0 && W % GROUP == 0 && FEW <= GROUP,
              "whole panels, vectors and groups");

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

// ---- what a query sees ----

struct Sight {  // keys [lo, hi), and of those the ones of its segment
    index_t lo, hi;
    int32_t segment;
};

static Sight sight(const AttentionArgs& g, index_t b, index_t i) {
    const index_t at = (g.starts ? index_t(g.starts[b]) : g.tk - g.tq) + i;
    Sight s{0, g.tk, 0};
    if (g.window) s.lo = std::max<index_t>(0, at - g.window + 1);
    if (g.window) s.hi = std::min(s.hi, at + g.window);
    if (g.causal) s.hi = std::min(s.hi, at + 1);
    if (g.q_segments) {
        s.segment = g.q_segments[b * g.tq + i];
        if (s.segment <= 0) s.hi = 0;
    }
    return s;
}

struct Extent {  // bounds over a group of rows: lo <= every lo, every hi <= hi, least <= every segment <= most
    index_t lo, hi;
    int32_t least, most;
};

// Of queries [i, i + n) of entry b.
static Extent extent(const AttentionArgs& g, index_t b, index_t i, index_t n) {
    Extent e{sight(g, b, i).lo, sight(g, b, i + n - 1).hi, 0, 0};
    if (!g.q_segments) return e;
    e = {PTRDIFF_MAX, 0, INT32_MAX, 0};
    for (index_t r = i; r < i + n; ++r) {
        const Sight s = sight(g, b, r);
        if (s.segment <= 0) continue;
        e.lo = std::min(e.lo, s.lo);
        e.hi = std::max(e.hi, s.hi);
        e.least = std::min(e.least, s.segment);
        e.most = std::max(e.most, s.segment);
    }
    return e;
}

struct KeyTile {  // keys [key, key + n) and their segments, padded to whole vectors, or null
    index_t key, n;
    const int32_t* segments = nullptr;
    int32_t least = 0, most = 0;

    KeyTile(const AttentionArgs& g, index_t b, index_t key, index_t n, int32_t* copy, float* words) : key(key), n(n) {
        for (index_t j = 0; g.drop && j < n; j += W) store(words + j, reinterpret_cast<V>(drawn_low(uint32_t(key + j), g.key)));
        if (!g.k_segments) return;
        const int32_t* from = g.k_segments + b * g.tk + key;
        const auto [low, high] = std::minmax_element(from, from + n);
        least = *low, most = *high;
        std::copy_n(from, n, copy);
        std::fill_n(copy + n, W, 0);
        segments = copy;
    }
};

struct View {  // columns [begin, end) of a key tile are all that a group of rows sees of it
    index_t begin = 0, end = 0;
    bool segmented = false;  // for some row segments decide
    bool empty() const { return begin >= end; }
    index_t first() const { return begin / W * W; }
    index_t last() const { return whole(end); }
};

static View view(const Extent& e, const KeyTile& t) {
    View s;
    s.begin = std::max<index_t>(0, e.lo - t.key), s.end = std::min(t.n, e.hi - t.key);
    if (t.segments) {
        if (e.most < t.least || e.least > t.most) return {};
        const auto outside = [&](index_t j) { return t.segments[j] < e.least || t.segments[j] > e.most; };
        while (s.begin < s.end && outside(s.begin)) ++s.begin;
        while (s.begin < s.end && outside(s.end - 1)) --s.end;
        s.segmented = e.least != t.least || e.most != t.most || t.least != t.most;
    }
    return s.empty() ? View{} : s;
}

struct Mask {  // which columns of a key tile a row sees
    int32_t lo, hi, segment;
    const int32_t* segments;  // of the tile, where they matter

    Mask() = default;
    Mask(const Sight& s, const KeyTile& t, const View& v)
        : lo(int32_t(std::clamp<index_t>(s.lo - t.key, 0, t.n))), hi(int32_t(std::clamp<index_t>(s.hi - t.key, 0, t.n))),
          segment(s.segment), segments(v.segmented ? t.segments : nullptr) {}

    bool shows_all(index_t j) const { return !segments && lo <= j && j + W <= hi; }  // of the columns j, ..., j + W - 1
    VI operator()(index_t j) const {
        const VI key = VI(lane_numbers()) + int32_t(j), seen = (key >= lo) & (key < hi);
        return segments ? seen & (*reinterpret_cast<const VIMem*>(segments + j) == segment) : seen;
    }
};

// Dropout of a row's probabilities. What a word owes to its key is made once for a tile, what it owes to its row is a number.
struct Kept {
    const float* words;  // of the keys of a tile
    uint32_t drop, row;
    Kept() = default;
    Kept(const AttentionArgs& g, index_t b, index_t h, index_t i, const float* words)
        : words(words), drop(g.drop), row(drawn_high(uint32_t((b * g.h + h) * g.tq + i), g.key)) {}
    // x for the columns j, ... that are kept, 0 for the others.
    V operator()(V x, index_t j) const { return drawn_keep(reinterpret_cast<VU>(load(words + j)), row, drop) ? x : V{}; }
};
INLINE float kept_scale(const AttentionArgs& g) { return float(1 / (1 - g.drop * 0x1p-32)); }

// ---- pieces ----

// scores[n, width] = Q K^T for the columns that each group of rows sees.
template <bool PAIRS>
static void scores_of(const View* views, const float* q, index_t q_row, index_t n, const float* packed, index_t d, float* scores,
                      index_t width) {
    const index_t lanes = lanes_of<PAIRS>(d);
    index_t begin = width, end = 0;
    for (index_t i = 0; i < n; i += GROUP) {
        const View& s = views[i / GROUP];
        if (s.empty()) continue;
        begin = std::min(begin, s.first());
        end = std::max(end, s.last());
    }
    for (index_t j = begin / PANEL * PANEL; j < end; j += PANEL)
        for (index_t i = 0; i < n; i += GROUP) {
            const View& s = views[i / GROUP];
            const index_t from = std::max(j, s.first()), to = std::min(j + PANEL, s.last());
            if (from < to)
                times<PAIRS>(std::min(GROUP, n - i), q + i * q_row, q_row, 1, packed + j * lanes + (from - j), PANEL, lanes,
                                   scores + i * width + from, width, to - from, false);
        }
}

// Scores of columns j, ... with their bias (a row of it over the n keys of a tile, or null).
INLINE V biased(V score, index_t j, const float* bias, index_t n) { return bias ? score + load_left(bias + j, n - j) * LOG2_E : score; }

INLINE const float* bias_row(const AttentionArgs& g, index_t b, index_t h, index_t i, index_t key) {
    return g.bias ? g.bias + b * g.bias_b + h * g.bias_h + i * g.bias_q + key : nullptr;
}

// ---- forward ----

struct Sums {  // of rows over some keys: (rows, dp) sums of p v; (rows, W) sums of p; (rows,) the largest score
    float *o, *total, *top;
    index_t dp;

    Sums(Carver& c, index_t rows, index_t dp)
        : o(c.take<float>(rows * dp)), total(c.take<float>(rows * W)), top(c.take<float>(rows + QUERIES)), dp(dp) {}

    void clear(index_t rows) {
        std::fill_n(o, rows * dp, 0.0f);
        std::fill_n(total, rows * W, 0.0f);
        std::fill_n(top, whole(rows), -__builtin_inff());
    }

    // Row r over the keys of `next` too, which come behind its own.
    void merge(const Sums& next, index_t r) {
        float *mine = o + r * dp, *sums = total + r * W;
        const float *theirs = next.o + r * dp, *added = next.total + r * W;
        if (sum(load(added)) == 0.0f) return;
        if (sum(load(sums)) == 0.0f) {
            top[r] = next.top[r];
            store(sums, load(added));
            std::copy_n(theirs, dp, mine);
            return;
        }
        const float most = std::max(top[r], next.top[r]);
        const float a = top[r] == most ? 1.0f : exp2_of_negative(splat(top[r] - most))[0];
        const float b = next.top[r] == most ? 1.0f : exp2_of_negative(splat(next.top[r] - most))[0];
        top[r] = most;
        store(sums, load(sums) * a + load(added) * b);
        for (index_t j = 0; j < dp; j += W) store(mine + j, load(mine + j) * a + load(theirs + j) * b);
    }
};

template <bool PAIRS>
struct Forward {  // a task: query rows of some heads that share their keys
    const AttentionArgs& g;
    index_t b, kv_head, head, query, queries, rows;  // row r: head + r / queries, query + r % queries
    index_t dp, q_row;
    float *q, *keys, *values, *copy, *scores, *words;
    int32_t* segments;
    Extent* extents;
    View* views;

    Forward(const AttentionArgs& args, index_t rows) : g(args), rows(rows), dp(whole(args.d)), q_row(whole(lanes_of<PAIRS>(args.d))) {
        Carver measure{nullptr};
        carve(measure);
        Carver pieces{static_cast<char*>(scratch(2, measure.used))};
        carve(pieces);
    }

    void carve(Carver& c) {
        q = c.take<float>(rows * q_row);
        keys = c.take<float>(KEYS * g.d);
        values = c.take<float>(KEYS * dp);
        copy = c.take<float>(KEYS * dp);
        scores = c.take<float>(QUERIES * KEYS);
        words = c.take<float>(KEYS);
        segments = c.take<int32_t>(KEYS + W);
        extents = c.take<Extent>((rows + GROUP - 1) / GROUP);
        views = c.take<View>((rows + GROUP - 1) / GROUP);
    }

    index_t head_of(index_t r) const { return head + r / queries; }
    index_t query_of(index_t r) const { return query + r % queries; }

    void start() {
        const float* from = g.q + b * g.q_batch + query * g.q_row + head * g.d;
        for (index_t h = 0; h < rows / queries; ++h)
            lay_rows<PAIRS>(from + h * g.d, g.q_row, queries, g.d, g.scale * LOG2_E, q + h * queries * q_row, q_row);
        for (index_t r = 0; r < rows; r += GROUP) {
            const index_t n = std::min(GROUP, rows - r), i = r % queries;
            extents[r / GROUP] = i + n <= queries ? extent(g, b, query + i, n) : extent(g, b, query, queries);
        }
    }

    // Sums over the keys [begin, end) that some row sees; begin starts a part.
    void add_part(index_t begin, index_t end, Sums& to) {
        to.clear(rows);
        index_t lo = end, hi = begin;
        for (index_t r = 0; r < rows; r += GROUP) {
            lo = std::min(lo, extents[r / GROUP].lo);
            hi = std::max(hi, extents[r / GROUP].hi);
        }
        hi = std::min(hi, end);
        for (index_t key = std::max(begin, lo / KEYS * KEYS); key < hi; key += KEYS) key_tile(key, std::min(KEYS, hi - key), to);
    }

    void key_tile(index_t key, index_t n, Sums& to) {
        const KeyTile t(g, b, key, n, segments, words);
        bool seen = false;
        for (index_t r = 0; r < rows; r += GROUP) {
            views[r / GROUP] = view(extents[r / GROUP], t);
            seen |= !views[r / GROUP].empty();
        }
        if (!seen) return;
        const float* k = g.k + b * g.k_batch + key * g.k_row + kv_head * g.k_head;
        const float* v = g.v + b * g.v_batch + key * g.v_row + kv_head * g.v_head;
        if (rows > FEW) pack_keys<PAIRS>(k, g.k_row, n, g.d, keys);
        const bool finite = stack_rows<PAIRS>(v, g.v_row, n, g.d, 1.0f, values, dp);
        for (index_t r = 0; r < rows; r += QUERIES) {
            const index_t some = std::min(QUERIES, rows - r);
            if (rows > FEW)
                scores_of<PAIRS>(views + r / GROUP, q + r * q_row, q_row, some, keys, g.d, scores, KEYS);
            else
                scores_where_they_lie(k, n);
            softmax(t, r, some, to);
            for (index_t i = r; i < r + some; i += GROUP) add_values(views[i / GROUP], i, std::min(GROUP, r + some - i), i - r, finite, to);
        }
    }

    void scores_where_they_lie(const float* k, index_t n) {
        const index_t begin = views[0].first();
        k += begin * g.k_row;
        n = views[0].end - begin;
        if (rows == 1) few_scores<PAIRS, 1>(q, q_row, k, g.k_row, n, g.d, scores + begin, KEYS);
        if (rows == 2) few_scores<PAIRS, 2>(q, q_row, k, g.k_row, n, g.d, scores + begin, KEYS);
        if (rows == 3) few_scores<PAIRS, 3>(q, q_row, k, g.k_row, n, g.d, scores + begin, KEYS);
        if (rows == 4) few_scores<PAIRS, 4>(q, q_row, k, g.k_row, n, g.d, scores + begin, KEYS);
    }

    // Scores of n rows r, ... become p = 2^(score - top), as lanes; top, total and o follow the new top.
    void softmax(const KeyTile& t, index_t r, index_t n, Sums& to) {
        float tops[QUERIES], alpha[QUERIES];
        for (index_t i = 0; i < n; ++i) tops[i] = views[(r + i) / GROUP].empty() ? -__builtin_inff() : largest(t, r + i, scores + i * KEYS);
        for (index_t i = n; i < whole(n); ++i) tops[i] = -__builtin_inff();
        for (index_t i = 0; i < n; i += W) {
            const V before = load(to.top + r + i), most = vmax(load(tops + i), before);
            store(alpha + i, before == most ? splat(1.0f) : exp2_of_negative(before - most));  // -inf == -inf too
            store_n(to.top + r + i, most, std::min<index_t>(W, n - i));
        }
        for (index_t i = 0; i < n; ++i) {
            const View& s = views[(r + i) / GROUP];
            if (s.empty()) continue;
            const float most = to.top[r + i];
            const Kept kept(g, b, head_of(r + i), query_of(r + i), words);
            const V added = exponentials(s, scores + i * KEYS, most == -__builtin_inff() ? 0.0f : most, kept);
            float *sums = to.total + (r + i) * W, *o = to.o + (r + i) * dp;
            store(sums, load(sums) * alpha[i] + added);
            if (alpha[i] != 1.0f)
                for (index_t j = 0; j < dp; j += W) store(o + j, load(o + j) * alpha[i]);
        }
    }

    // -> the largest score of row r, which gets its bias, and -inf where it does not see.
    float largest(const KeyTile& t, index_t r, float* x) {
        const View& s = views[r / GROUP];
        const V hidden = splat(-__builtin_inff());
        const float* bias = bias_row(g, b, head_of(r), query_of(r), t.key);
        const Mask mask(sight(g, b, query_of(r)), t, s);
        V most = hidden;
        for (index_t j = s.first(); j < s.last(); j += W) {
            V y = load(x + j);
            if (bias || !mask.shows_all(j)) {
                y = biased(y, j, bias, t.n);
                y = mask(j) ? y : hidden;
                store(x + j, y);
            }
            most = vmax(y, most);
        }
        return max_lane(most);
    }

    INLINE V exponentials(const View& s, float* x, float top, const Kept& kept) {
        const V shift = splat(top);
        V added{};
        for (index_t j = s.first(); j < s.last(); j += PAIRS ? 2 * W : W) {
            V p = exp2_of_negative(load(x + j) - shift);
            added = added + p;
            if (kept.drop) p = kept(p, j);
            if constexpr (PAIRS) {
                V next{};
                if (j + W < s.last()) next = exp2_of_negative(load(x + j + W) - shift);
                added = added + next;
                if (kept.drop && j + W < s.last()) next = kept(next, j + W);
                store(x + j / 2, reinterpret_cast<V>(bf16_row(p, next)));
            } else {
                store(x + j, p);
            }
        }
        return added;
    }

    // o of n rows r, ... += p v
    void add_values(const View& s, index_t r, index_t n, index_t row, bool finite, Sums& to) {
        if (s.empty()) return;
        const index_t first = PAIRS ? s.begin / 2 : s.begin, steps = lanes_of<PAIRS>(s.end) - first;
        const float *p = scores + row * KEYS + first, *v = values + first * dp;
        if (finite)
            times<PAIRS>(n, p, KEYS, 1, v, dp, steps, to.o + r * dp, dp, dp, true);
        else
            times_hiding<PAIRS>(n, p, KEYS, v, dp, steps, to.o + r * dp, dp, dp, copy);
    }

    void write(const Sums& from) const {
        const float scale = kept_scale(g);
        float *all = from.total, *lse = from.top;  // (rows,): the sums of lanes
        for (index_t r = 0; r < rows; ++r) all[r] = sum(load(from.total + r * W));
        for (index_t r = 0; r < rows; r += W) {
            const V x = load(all + r);
            store_n(lse + r, x == 0.0f ? splat(-__builtin_inff()) : load(lse + r) * LN_2 + log(x), std::min<index_t>(W, rows - r));
        }
        for (index_t r = 0; r < rows; ++r) g.lse[(b * g.h + head_of(r)) * g.tq + query_of(r)] = lse[r];
        for (index_t h = 0; h < rows / queries; ++h) {
            float* out = g.out + ((b * g.tq + query) * g.h + head + h) * g.d;
            for (index_t i = 0; i < queries; ++i) {
                const index_t r = h * queries + i;
                const float factor = all[r] == 0.0f ? 0.0f : 1.0f / all[r] * scale;
                fetch<true>(out, g.h * g.d, i + AHEAD, queries, g.d);
                for (index_t j = 0; j < g.d; j += W)
                    store_n(out + i * g.h * g.d + j, load(from.o + r * dp + j) * factor, std::min<index_t>(W, g.d - j));
            }
        }
    }
};

template <bool PAIRS>
static void attention_of(const AttentionArgs& g) {
    if (!g.b || !g.tq || !g.h) return;
    const index_t group = g.h / g.hkv, queries = std::min(TASK_ROWS, g.tq);
    const index_t heads = std::min(group, std::max<index_t>(1, TASK_ROWS / g.tq));  // of one kv head, in a task
    const index_t head_tasks = (group + heads - 1) / heads, query_tasks = (g.tq + queries - 1) / queries;
    const index_t entries = g.b * g.hkv * head_tasks, tasks = entries * query_tasks, dp = whole(g.d);
    const auto task = [&](index_t number) {
        const index_t entry = number % entries, query = (query_tasks - 1 - number / entries) * queries;  // causal: the longest first
        const index_t first = entry % head_tasks * heads, n = std::min(queries, g.tq - query);
        Forward<PAIRS> f(g, std::min(heads, group - first) * n);
        f.b = entry / head_tasks / g.hkv;
        f.kv_head = entry / head_tasks % g.hkv;
        f.head = f.kv_head * group + first;
        f.query = query;
        f.queries = n;
        return f;
    };
    const index_t parts = std::max<index_t>(1, (g.tk + PART - 1) / PART), rows = heads * queries;
    Carver one{nullptr};
    Sums(one, rows, dp);
    const auto sums_of = [&](void* block, index_t i) {
        Carver c{static_cast<char*>(block) + i * one.used};
        return Sums(c, rows, dp);
    };
    if (rows <= QUERIES && tasks < ENOUGH && parts > 1) {  // few rows, many keys: a part is a task
        void* block = scratch(4, tasks * parts * one.used);
        parallel_for(tasks * parts, [&](index_t i) {
            Forward<PAIRS> f = task(i / parts);
            f.start();
            Sums sums = sums_of(block, i);
            f.add_part(i % parts * PART, std::min(g.tk, (i % parts + 1) * PART), sums);
        });
        return parallel_for(tasks, [&](index_t i) {
            const Forward<PAIRS> f = task(i);
            Sums all = sums_of(block, i * parts);
            for (index_t part = 1; part < parts; ++part)
                for (index_t r = 0; r < f.rows; ++r) all.merge(sums_of(block, i * parts + part), r);
            f.write(all);
        });
    }
    parallel_for(tasks, [&](index_t i) {
        Forward<PAIRS> f = task(i);
        f.start();
        void* block = scratch(4, 2 * one.used);
        Sums all = sums_of(block, 0), more = sums_of(block, 1);
        f.add_part(0, std::min(g.tk, PART), all);
        for (index_t part = 1; part < parts; ++part) {
            f.add_part(part * PART, std::min(g.tk, (part + 1) * PART), more);
            for (index_t r = 0; r < f.rows; ++r) all.merge(more, r);
        }
        f.write(all);
    });
}
