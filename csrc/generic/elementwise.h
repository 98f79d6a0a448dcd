// What goes element by element: activations, gated units, sums, dropout. Bound: memory bandwidth.

constexpr index_t GRAIN = 16384;  // elements of a task; less than that is done by the caller's thread alone

// f(j, lanes) for j = 0, W, ... < n, in parallel.
template <class F>
static void each(index_t n, const F& f) {
    parallel_ranges(n, GRAIN, [&](index_t begin, index_t end) {
        each_vector(end - begin, [&](index_t j, index_t lanes) { f(begin + j, lanes); });
    });
}

// ---- activations ----
struct Slope {
    V y, d;  // act(x), act'(x)
};

// Phi(x), the normal distribution, and its density: gelu(x) = x Phi(x). The smaller tail is e^(-x^2/2) Q(t), t = 1 / (1 + 0.23 |x|), with a
// minimax Q (4.8e-8 relative), so that small values keep their digits: error (3e-7 + 6e-8 x^2/2) relative, without FMAs
// (3e-7 + 1e-7 x^2/2). Form: Hastings 1955.
INLINE Slope normal(V x) {
    const V t = 1.0f / (vmax(x, -x) * 0.23f + 1.0f);
    V q = splat(-7.84672454e-2f);
    q = q * t + 2.90413092e-1f;
    q = q * t - 2.78124791e-1f;
    q = q * t + 3.01470273e-1f;
    q = q * t - 3.29184318e-2f;
    q = q * t + 1.19513297e-1f;
    q = q * t + 8.57631138e-2f;
    q = q * t + 9.23784291e-2f;
    q = q * t - 2.77608152e-5f;
    const V e = exp_of_minus_half(x * x), tail = e * q;
    return {x < 0.0f ? tail : 1.0f - tail, e * 0.398942280f};
}

INLINE V sigmoid(V x) { return 1.0f / (exp(-x) + 1.0f); }

template <Activation A>
INLINE Slope activate(V x) {
    if constexpr (A == kRelu) return {vmax(V{}, x), x > 0.0f ? splat(1.0f) : V{}};
    if constexpr (A == kSilu) {
        const V s = sigmoid(x);
        return {x * s, s * (x * (1.0f - s) + 1.0f)};
    }
    if constexpr (A == kGelu) {
        const Slope n = normal(x);
        return {x * n.y, x * n.d + n.y};
    }
    if constexpr (A == kGeluTanh) {  // 0.5 (1 + tanh(u)) = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
        const V near = vmax(vmin(x, splat(16.0f)), splat(-16.0f));  // beyond, s (1 - s) is 0 and x^2 could pass the largest float
        const V s = sigmoid((x * x * 0.0713548163f + 1.59576912f) * x);
        return {x * s, x * (s * (1.0f - s)) * (near * near * 0.214064449f + 1.59576912f) + s};
    }
    return {x, splat(1.0f)};
}

template <Activation A>
struct Act {
    static constexpr Activation value = A;
};

// f(Act<act>()): the choice stands outside of the loops.
template <class F>
static void choose(Activation act, const F& f) {
    switch (act) {
        case kGeluTanh: return f(Act<kGeluTanh>());
        case kGelu: return f(Act<kGelu>());
        case kSilu: return f(Act<kSilu>());
        case kRelu: return f(Act<kRelu>());
        case kNone: return f(Act<kNone>());
    }
}

static void activation(const float* x, float* y, index_t n, Activation act) {
    choose(act, [&](auto a) {
        each(n, [=](index_t j, index_t lanes) { store_n(y + j, activate<decltype(a)::value>(load_n(x + j, lanes)).y, lanes); });
    });
}

static void activation_vjp(const float* dy, const float* x, float* dx, index_t n, Activation act) {
    choose(act, [&](auto a) {
        each(n, [=](index_t j, index_t lanes) {
            store_n(dx + j, load_n(dy + j, lanes) * activate<decltype(a)::value>(load_n(x + j, lanes)).d, lanes);
        });
    });
}

// ---- gated units: y = act(gate) * up ----
static void glu(const float* gate, const float* up, float* y, index_t n, Activation act) {
    choose(act, [&](auto a) {
        each(n, [=](index_t j, index_t lanes) {
            store_n(y + j, activate<decltype(a)::value>(load_n(gate + j, lanes)).y * load_n(up + j, lanes), lanes);
        });
    });
}

static void glu_vjp(const float* dy, const float* gate, const float* up, float* dgate, float* dup, index_t n, Activation act) {
    choose(act, [&](auto a) {
        each(n, [=](index_t j, index_t lanes) {
            const Slope g = activate<decltype(a)::value>(load_n(gate + j, lanes));
            const V d = load_n(dy + j, lanes);
            store_n(dgate + j, d * load_n(up + j, lanes) * g.d, lanes);
            store_n(dup + j, d * g.y, lanes);
        });
    });
}

// ---- sums, dropout ----
static void add(const float* a, const float* b, float* y, index_t n) {
    each(n, [=](index_t j, index_t lanes) { store_n(y + j, load_n(a + j, lanes) + load_n(b + j, lanes), lanes); });
}

INLINE VU mix(VU h) {  // a 32-bit finaliser
    h = (h ^ (h >> 16)) * 0x7FEB352Du;
    h = (h ^ (h >> 15)) * 0x846CA68Bu;
    return h ^ (h >> 16);
}

INLINE VU lane_numbers() {
    VU x;
    for (int i = 0; i < W; ++i) x[i] = uint32_t(i);
    return x;
}

// Words of the counter-based generator: of W neighbouring counters from `low` on, their upper halves `high` all the same.
INLINE VU drawn_low(uint32_t low, uint64_t key) { return mix(lane_numbers() * 0x9E3779B1u + (low * 0x9E3779B1u + uint32_t(key))); }
INLINE uint32_t drawn_high(uint32_t high, uint64_t key) { return uint32_t(key >> 32) ^ high * 0x85EBCA77u; }
INLINE VI drawn_keep(VU low, uint32_t high, uint32_t threshold) { return VI(mix(low ^ high) >= threshold + VU{}); }

// Element i is kept where word i is at least `threshold`.
static void dropout(const float* x, float* y, index_t n, uint32_t threshold, uint64_t key, float scale) {
    each(n, [=](index_t j, index_t lanes) {  // j is a multiple of W
        const VI keep = drawn_keep(drawn_low(uint32_t(j), key), drawn_high(uint32_t(uint64_t(j) >> 32), key), threshold);
        store_n(y + j, load_n(x + j, lanes) * (keep ? splat(scale) : V{}), lanes);
    });
}
