// Vectors over GCC and Clang vector types: V holds PYLLM_WIDTH floats. Included inside an ISA's target region and anonymous namespace.
// a * b + c contracts to one FMA where the ISA has it (-ffp-contract=fast).
constexpr int W = PYLLM_WIDTH;

typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VU __attribute__((vector_size(W * 4)));
typedef float VMem __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t VIMem __attribute__((vector_size(W * 4), aligned(4), may_alias));

typedef int16_t VS __attribute__((vector_size(W * 4)));   // twice as many halves of lanes
typedef uint16_t VH __attribute__((vector_size(W * 2)));  // a half for each lane
typedef int8_t VB __attribute__((vector_size(W)));        // a byte for each lane

#define INLINE static inline __attribute__((always_inline))

INLINE V load(const float* p) { return *reinterpret_cast<const VMem*>(p); }
INLINE void store(float* p, V x) { *reinterpret_cast<VMem*>(p) = x; }
INLINE VI load_int(const uint32_t* p) { return *reinterpret_cast<const VIMem*>(p); }
INLINE V splat(float x) { return x - V{}; }  // -0.0f stays -0.0f
INLINE VI splat_int(int32_t x) { return x + VI{}; }

// The first n lanes (0 < n <= W), the others `fill`. Memory behind them is not touched.
#if PYLLM_WIDTH == 16
INLINE __mmask16 first_lanes(index_t n) { return __mmask16(0xFFFFu >> (16 - n)); }
INLINE V load_n(const float* p, index_t n, float fill = 0.0f) {
    return n == W ? load(p) : V(_mm512_mask_loadu_ps(__m512(splat(fill)), first_lanes(n), p));
}
INLINE void store_n(float* p, V x, index_t n) { n == W ? store(p, x) : _mm512_mask_storeu_ps(p, first_lanes(n), __m512(x)); }
#elif PYLLM_WIDTH == 8
INLINE VI first_lanes(index_t n) { return VI{0, 1, 2, 3, 4, 5, 6, 7} < splat_int(int32_t(n)); }
INLINE V load_n(const float* p, index_t n, float fill = 0.0f) {
    if (n == W) return load(p);
    const VI mask = first_lanes(n);
    return mask ? V(_mm256_maskload_ps(p, __m256i(mask))) : splat(fill);
}
INLINE void store_n(float* p, V x, index_t n) { n == W ? store(p, x) : _mm256_maskstore_ps(p, __m256i(first_lanes(n)), __m256(x)); }
#else
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
#endif

INLINE V vmax(V a, V b) { return a > b ? a : b; }  // b where either is NaN
INLINE V vmin(V a, V b) { return a < b ? a : b; }
INLINE VI as_int(V x) { return reinterpret_cast<VI>(x); }
INLINE V as_float(VI x) { return reinterpret_cast<V>(x); }
INLINE V to_float(VI x) { return __builtin_convertvector(x, V); }

INLINE V vsqrt(V x) {
#if PYLLM_WIDTH == 16
    return V(_mm512_maskz_sqrt_ps(0xFFFF, __m512(x)));
#elif PYLLM_WIDTH == 8
    return V(_mm256_sqrt_ps(__m256(x)));
#else
    for (int i = 0; i < W; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

// ---- bfloat16 pairs: two neighbours along k in one 32-bit lane, the first in the low half ----
// Rounded to nearest even; NaN stays NaN.
INLINE VU to_bf16(V x) {  // in the low halves
#ifdef PYLLM_DOT
    return VU(_mm512_maskz_cvtepu16_epi32(0xFFFF, __m256i(_mm512_cvtneps_pbh(__m512(x)))));
#else
    const VU u = reinterpret_cast<VU>(x), rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return x == x ? rounded : u >> 16 | 0x40;
#endif
}
INLINE V bf16_first(VU pair) { return reinterpret_cast<V>(pair << 16); }
INLINE V bf16_second(VU pair) { return reinterpret_cast<V>(pair & 0xFFFF0000u); }
INLINE VU bf16_pair(V first, V second) {
#ifdef PYLLM_DOT
    const __m512i interleaved = __m512i(VU{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x10001u + 0x100000u);
    return VU(_mm512_permutexvar_epi16(interleaved, __m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)))));
#else
    return to_bf16(first) | to_bf16(second) << 16;
#endif
}

// 2 W neighbours along a row: lane i is the pair of numbers 2 i, 2 i + 1 of lo, hi.
template <int... I>
INLINE VU even_halves(VU lo, VU hi, std::integer_sequence<int, I...>) {
    typedef uint16_t VH __attribute__((vector_size(W * 4)));
    return reinterpret_cast<VU>(__builtin_shufflevector(reinterpret_cast<VH>(lo), reinterpret_cast<VH>(hi), (2 * I)...));
}
INLINE VU bf16_row(V lo, V hi) {
#ifdef PYLLM_DOT
    return VU(_mm512_cvtne2ps_pbh(__m512(hi), __m512(lo)));
#else
    return even_halves(to_bf16(lo), to_bf16(hi), std::make_integer_sequence<int, 2 * W>());
#endif
}

// acc + a.first * b.first + a.second * b.second
INLINE V bf16_dot(V acc, VU a, VU b) {
#ifdef PYLLM_DOT
    return V(_mm512_dpbf16_ps(__m512(acc), __m512bh(a), __m512bh(b)));
#else
    return bf16_second(a) * bf16_second(b) + (bf16_first(a) * bf16_first(b) + acc);
#endif
}

// ---- float16: widened, exactly ----
INLINE float half_to_float(uint16_t h) {
    const uint32_t magnitude = (h & 0x7FFFu) << 13;
    float x;
    std::memcpy(&x, &magnitude, 4);
    x *= 5.192296858534828e33f;  // 2^112: the exponent's bias; right for subnormals too
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits |= (h & 0x8000u) << 16 | ((h & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u);
    std::memcpy(&x, &bits, 4);
    return x;
}
INLINE V load_half(const uint16_t* p) {
#if PYLLM_WIDTH == 16
    return V(_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif PYLLM_WIDTH == 8
    return V(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    float lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = half_to_float(p[i]);
    return load(lanes);
#endif
}

// ---- bytes: four neighbours along k in one 32-bit lane ----
// Products of 16-bit neighbours, added: a lane's low halves and its high ones.
INLINE VI pair_dot(VS a, VS b) {
#if PYLLM_WIDTH == 16
    return VI(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif PYLLM_WIDTH == 8
    return VI(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
    return VI(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
    return (VI(a) << 16 >> 16) * (VI(b) << 16 >> 16) + (VI(a) >> 16) * (VI(b) >> 16);
#endif
}

// acc + the sum over a lane's four bytes of w * x, w unsigned, x signed; exact, nothing saturates.
INLINE VI byte_dot(VI acc, VU w, VI x) {
#ifdef PYLLM_DOT
    return VI(_mm512_dpbusd_epi32(__m512i(acc), __m512i(w), __m512i(x)));
#else
    const VS even = VS(x) << 8 >> 8, odd = VS(x) >> 8;
    return acc + pair_dot(VS(w & 0x00FF00FF), even) + pair_dot(VS(w >> 8 & 0x00FF00FF), odd);
#endif
}

template <int S, int... I>
INLINE V rotated(V x, std::integer_sequence<int, I...>) { return __builtin_shufflevector(x, x, ((I + S) % W)...); }

// Lanes added as a fixed tree: halves, quarters, ...
template <int HALF = W / 2>
INLINE float sum(V x) {
    if constexpr (HALF == 0) return x[0];
    else return sum<HALF / 2>(x + rotated<HALF>(x, std::make_integer_sequence<int, W>()));
}
template <int HALF = W / 2>
INLINE float max_lane(V x) {
    if constexpr (HALF == 0) return x[0];
    else return max_lane<HALF / 2>(vmax(x, rotated<HALF>(x, std::make_integer_sequence<int, W>())));
}

// Sum over j = 0, W, ... of f(j, lanes), the last one for c - j lanes: four accumulators, so that the order depends on c alone.
template <class F>
INLINE float row_sum(index_t c, const F& f) {
    V a{}, b{}, d{}, e{};
    index_t j = 0;
    for (; j + 4 * W <= c; j += 4 * W) {
        a += f(j, W);
        b += f(j + W, W);
        d += f(j + 2 * W, W);
        e += f(j + 3 * W, W);
    }
    for (; j + W <= c; j += W) a += f(j, W);
    if (j < c) b += f(j, c - j);
    return sum((a + b) + (d + e));
}

// f(j, lanes) for j = 0, W, ... < c.
template <class F>
INLINE void each_vector(index_t c, const F& f) {
    index_t j = 0;
    for (; j + W <= c; j += W) f(j, W);
    if (j < c) f(j, c - j);
}

INLINE V times_power_of_2(V x, V n) {  // x * 2^n for whole n from -252 to 254
#if PYLLM_WIDTH == 16
    return V(_mm512_maskz_scalef_ps(0xFFFF, __m512(x), __m512(n)));
#else
    const VI e = __builtin_convertvector(n, VI), half = e >> 1;  // 2^128 and 2^-126 need two factors
    return x * as_float((half + 127) << 23) * as_float((e - half + 127) << 23);
#endif
}

// e^x to 9e-8 relative: x = n ln2 + r, ln2 in two constants, e^r = 1 + r + r^2 P(r) with a minimax P (3.1e-9). 0 below -87.336 (no
// subnormals), inf above 88.7228, NaN stays.
INLINE V exp(V x) {
    const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    const V clamped = vmax(splat(-88.0f), vmin(splat(89.0f), x));
    const V n = (clamped * 1.44269504f + magic) - magic;
    V r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = splat(1.38145e-3f);
    p = p * r + 8.368753e-3f;
    p = p * r + 4.1668391e-2f;
    p = p * r + 1.66665198e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * r * r + r + 1.0f;
    const V y = times_power_of_2(p, n);
    return x < -87.3365f ? V{} : y;
}

// 2^r for |r| <= 0.5 times 2^n, n + 127 in the low bits of shifted.
INLINE V exp2_of_parts(V r, V shifted) {
    V p = splat(1.535336206e-4f);
    p = p * r + 1.339887459e-3f;
    p = p * r + 9.618437358e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472029e-1f;
    p = p * r + 1.0f;
    return p * as_float(as_int(shifted) << 23);
}
constexpr float EXP2_MAGIC = 12582912.0f + 127.0f;  // adding it rounds, and leaves the exponent of 2^n in the low bits

// 2^x for x <= 0 (a rounding error above it does no harm) to 9e-8 relative; exactly 1 at 0, exactly 0 below -126, NaN stays.
INLINE V exp2_of_negative(V x) {
    const V shifted = x + EXP2_MAGIC;
    const V y = exp2_of_parts(x - (shifted - EXP2_MAGIC), shifted);
    return x < -126.0f ? V{} : y;
}

// e^(-x / 2) for x >= 0 to (9e-8 + 7e-9 x) relative: x / (2 ln 2) is rounded only when its whole part is gone. 0 beyond 174, NaN stays.
INLINE V exp_of_minus_half(V x) {
    const V shifted = x * -0.72134752f + EXP2_MAGIC;
    const V y = exp2_of_parts(x * -0.72134752f - (shifted - EXP2_MAGIC), shifted);
    return x > 174.0f ? V{} : y;
}

// ln x to 1e-7 for finite x > 0: x = m 2^e with m from 0.707 to 1.414, ln m as a polynomial in m - 1. NaN stays.
INLINE V log(V x) {
    const VI e = (as_int(x) - as_int(splat(0.70710678f))) >> 23;
    const V f = as_float(as_int(x) - (e << 23)) - 1.0f, n = to_float(e);
    V p = splat(7.0376836e-2f);
    p = p * f - 1.1514610e-1f;
    p = p * f + 1.1676999e-1f;
    p = p * f - 1.2420141e-1f;
    p = p * f + 1.4249323e-1f;
    p = p * f - 1.6668058e-1f;
    p = p * f + 2.0000715e-1f;
    p = p * f - 2.4999994e-1f;
    p = p * f + 3.3333331e-1f;
    const V y = f * f * (p * f - 0.5f) + n * -2.12194440e-4f + f + n * 0.693359375f;
    return x == x ? y : x;
}
