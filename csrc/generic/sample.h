// Draws a token from each row. Tokens are met in order of falling logit, equal ones by rising id, and only as many as the draw needs:
// a heap gives the next one in log V steps, so that nothing is sorted. Probabilities are float64.

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
    index_t best = 0;
    for (index_t j = 0; j < v; ++j) {
        if (x[j] != x[j]) return int32_t(j);
        if (x[j] > x[best]) best = j;
    }
    return int32_t(best);
}

static int32_t draw(const float* x, double uniform, index_t v, double temperature, index_t top_k, double top_p, double min_p) {
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
    const bool cut = top_k > 0 && top_k < v;
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
    const bool lazy = !cut && top_p >= 1 && min_p <= 0;
    double reached = 0;
    for (index_t i = 0; i < (lazy ? all : met); ++i) {
        if (i == met) meet();
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
