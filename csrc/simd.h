// Vectors over GCC and Clang vector types: V holds PYLLM_WIDTH floats. Included inside an ISA's target region and anonymous namespace.
// a * b + c contracts to one FMA where the ISA has it (-ffp-contract=fast).
constexpr int W = PYLLM_WIDTH;

typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VU __attribute__((vector_size(W * 4)));
typedef float VMem __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t VIMem __attribute__((vector_size(W * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE V load(const float* p) { return *reinterpret_cast<const VMem*>(p); }
INLINE void store(float* p, V x) { *reinterpret_cast<VMem*>(p) = x; }
INLINE V splat(float x) { return x - V{}; }  // -0.0f stays -0.0f
INLINE VI splat_int(int32_t x) { return x + VI{}; }

// The first n lanes (0 < n <= W), the others `fill`.
INLINE V load_n(const float* p, index_t n, float fill = 0.0f) {
    if (n == W) return load(p);
    float lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = i < n ? p[i] : fill;
    return load(lanes);
}
INLINE void store_n(float* p, V x, index_t n) {
    if (n == W) return store(p, x);
    float lanes[W];
    store(lanes, x);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

INLINE V vmax(V a, V b) { return a > b ? a : b; }  // b where either is NaN
INLINE V vmin(V a, V b) { return a < b ? a : b; }
INLINE VI as_int(V x) { return reinterpret_cast<VI>(x); }
INLINE V as_float(VI x) { return reinterpret_cast<V>(x); }
INLINE V to_float(VI x) { return __builtin_convertvector(x, V); }

// Lanes added as a fixed tree: halves, quarters, ...
INLINE float sum(V x) {
    float lanes[W];
    store(lanes, x);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}
INLINE float max_lane(V x) {
    float lanes[W];
    store(lanes, x);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

// e^x to 1.2e-7 relative: x = n ln2 + r, ln2 in two constants, a degree-6 polynomial in r; 0 below -87.34, inf above 88.72, NaN stays.
INLINE V exp(V x) {
    const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    const V clamped = vmin(vmax(x, splat(-87.3365f)), splat(88.7228f));
    const V n = (clamped * 1.44269504f + magic) - magic;
    V r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const VI e = __builtin_convertvector(n, VI);
    const VI first = e >> 1;  // 2^128 and 2^-126 need two factors
    const V y = p * as_float((first + 127) << 23) * as_float((e - first + 127) << 23);
    const V low = x < -87.3365f ? V{} : y;
    const V high = x > 88.7228f ? splat(__builtin_inff()) : low;
    return x == x ? high : x;
}
