// Draws a token from each row. Tokens are met in order of falling logit, equal ones by rising id, and only as many as the draw needs:
// a heap gives the next one in log V steps, so that nothing is sorted. Where nothing is cut, whole buckets of tokens are passed by, and the
// heap holds those of the bucket in which the draw ends. Probabilities are float64.

// Ascending keys are falling logits, then rising ids; NaN comes last.
INLINE uint64_t order_key(float x, index_t id) {
    uint32_t bits;
    x += 0.0f;  // -0 equals 0
    std::memcpy(&bits, &x, 4);
    const uint32_t falling = bits >> 31 ? bits : ~bits & 0x7FFFFFFFu;
    return uint64_t(x == x ? falling : 0xFFFFFFFFu) << 32 | uint32_t(id);
}

struct Heap {  // the smallest key on top
    uint64_t* key;
    index_t n;
    void sift(index_t i) {
        const uint64_t moved = key[i];
        for (index_t child; (child = 2 * i + 1) < n; i = child) {
            if (child + 1 < n && key[child + 1] < key[child]) ++child;
            if (moved <= key[child]) break;
            key[i] = key[child];
        }
        key[i] = moved;
    }
    void build() {
        for (index_t i = n / 2; i-- > 0;) sift(i);
    }
    uint32_t pop() {
        const uint32_t id = uint32_t(key[0]);
        key[0] = key[--n];
        sift(0);
        return id;
    }
};

static int32_t greedy(const float* x, index_t v) {  // the first of the largest; NaN counts as largest
    V top = splat(-__builtin_inff()), poison{};
    each_vector(v, [&](index_t j, index_t n) {
        const V y = load_n(x + j, n, -__builtin_inff());
        top = vmax(y, top);
        poison += y != y ? splat(1.0f) : V{};
    });
    const float most = max_lane(top);
    const bool whole = max_lane(poison) == 0.0f;
    for (index_t j = 0; j < v; ++j)
        if (whole ? x[j] == most : x[j] != x[j]) return int32_t(j);
    return 0;
}

// ---- a draw from all tokens ----
typedef double D __attribute__((vector_size(W * 4)));
typedef int64_t DI __attribute__((vector_size(W * 4)));
constexpr int DW = W / 2;
constexpr int BUCKETS = 1024;  // of equal width in the logit
constexpr double DEPTH = 40;   // what lies deeper, less than e^-40 of the likeliest, shares the last one

// e^x for x <= 0 to 3e-16 relative: x = n ln2 + r, ln2 in two constants, the series of e^r up to r^13. 0 below -700, NaN stays.
INLINE D exp_of_negative(D x) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to the nearest integer, left in the low bits
    const D near = x < -700.0 ? D{} - 700.0 : x, shifted = near * 1.4426950408889634 + magic, n = shifted - magic;
    const D r = near - n * 0.6931471803691238 - n * 1.9082149292705877e-10;
    constexpr double inverse[] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                                  1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
    D p = D{} + inverse[13];
#pragma GCC unroll 16
    for (int i = 12; i >= 0; --i) p = p * r + inverse[i];
    p = p * reinterpret_cast<D>((reinterpret_cast<DI>(shifted) + 1023) << 52);
    return x < -700.0 ? D{} : p;
}

// x:(v,), its largest at `top`, a finite number; no NaN among them.
static int32_t draw_from_all(const float* x, double uniform, index_t v, double temperature, float top) {
    // 1. depths below the top in units of the temperature, probabilities
    const index_t padded = (v + DW - 1) / DW * DW;
    double* p = static_cast<double*>(scratch(3, 16 * padded));
    double* depth = p + padded;
    double deepest = 0;
    for (index_t j = 0; j < v; ++j) depth[j] = (double(top) - double(x[j])) / temperature;
    for (index_t j = v; j < padded; ++j) depth[j] = __builtin_inf();
    for (index_t j = 0; j < padded; j += DW) {
        D d;
        std::memcpy(&d, depth + j, sizeof d);
        d = exp_of_negative(-d);
        std::memcpy(p + j, &d, sizeof d);
    }
    for (index_t j = 0; j < v; ++j) deepest = depth[j] > deepest ? depth[j] : deepest;
    // 2. the mass of each bucket
    const double per_depth = (BUCKETS - 1) / (deepest < DEPTH ? std::max(deepest, 1e-300) : DEPTH);
    const auto bucket = [=](index_t j) { return int(std::min(depth[j] * per_depth, double(BUCKETS - 1))); };
    const int last_bucket = int(std::min(deepest * per_depth, double(BUCKETS - 1)));
    double mass[BUCKETS] = {}, total = 0, reached = 0;
    for (index_t j = 0; j < v; ++j) mass[bucket(j)] += p[j];
    for (const double m : mass) total += m;
    // 3. tokens in order from the bucket on in which the draw ends
    uint64_t* keys = static_cast<uint64_t*>(scratch(2, 8 * v));
    int32_t last = 0;
    for (int b = 0; b <= last_bucket; ++b) {
        if (reached + mass[b] <= uniform * total && b < last_bucket) {
            reached += mass[b];
            continue;
        }
        Heap heap{keys, 0};
        for (index_t j = 0; j < v; ++j)
            if (bucket(j) == b) keys[heap.n++] = order_key(x[j], j);
        heap.build();
        while (heap.n) {
            last = int32_t(heap.pop());
            reached += p[last];
            if (reached > uniform * total) return last;
        }
    }
    return last;
}

static int32_t draw(const float* x, double uniform, index_t v, double temperature, index_t top_k, double top_p, double min_p) {
    const bool cut = top_k > 0 && top_k < v, whole = !cut && top_p >= 1 && min_p <= 0;
    if (whole) {
        float top = -__builtin_inff();
        bool known = true;
        for (index_t j = 0; j < v; ++j) {
            top = x[j] > top ? x[j] : top;
            known &= x[j] == x[j];
        }
        if (known && top - top == 0) return draw_from_all(x, uniform, v, temperature, top);
    }
    // 1. the heap of all tokens
    Heap heap{static_cast<uint64_t*>(scratch(2, 8 * v)), v};
    for (index_t j = 0; j < v; ++j) heap.key[j] = order_key(x[j], j);
    heap.build();
    const int32_t best = int32_t(uint32_t(heap.key[0]));
    const double top = x[best];
    const auto weight = [=](uint32_t id) { return std::exp((double(x[id]) - top) / temperature); };
    // 2. the first `met` in order, their weights, and the sum of weights that makes them probabilities
    double* p = static_cast<double*>(scratch(3, 8 * v));
    int32_t* id = static_cast<int32_t*>(scratch(4, 4 * v));
    index_t met = 0;
    double total = 0;
    const auto meet = [&] {
        id[met] = int32_t(heap.pop());
        p[met] = weight(uint32_t(id[met]));
        return p[met++];
    };
    if (cut) {
        while (met < top_k) total += meet();
    } else {
        for (index_t j = 0; j < v; ++j) total += weight(uint32_t(j));
    }
    if (!(total < __builtin_inf())) return best;  // NaN or infinity among the logits
    // 3. top-p and min-p keep the first of them
    const index_t all = cut ? top_k : v;
    double kept = total;
    if (top_p < 1 || min_p > 0) {
        index_t count = 0;
        kept = 0;
        for (; count < all; ++count) {
            if (count == met) meet();
            if (count && (kept / total >= top_p || p[count] < min_p * p[0])) break;
            kept += p[count];
        }
        met = count;
    }
    // 4. the draw
    double reached = 0;
    for (index_t i = 0; i < met; ++i) {
        reached += p[i];
        if (reached > uniform * kept) return id[i];
    }
    return id[met - 1];
}

static void sample(const float* logits, const double* uniform, int32_t* ids, index_t n, index_t v, double temperature, index_t top_k,
                   double top_p, double min_p) {
    parallel_for(n, [=](index_t i) {
        const float* x = logits + i * v;
        ids[i] = temperature == 0 ? greedy(x, v) : draw(x, uniform[i], v, temperature, top_k, top_p, min_p);
    });
}
