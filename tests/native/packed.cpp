// Products with packed weights and their rows as floats, against the formats' definitions in float64.
#include "check.h"

namespace {

struct Shape {
    index_t m, o, i;
};
constexpr Shape kShapes[] = {{0, 5, 32},  {1, 1, 32},  {1, 33, 64},  {2, 64, 0},     {3, 31, 96},
                             {7, 65, 96}, {8, 32, 64}, {13, 70, 64}, {1, 100, 1056}, {100, 270, 544}};
constexpr int kWords[] = {16, 8, 4, 4};
constexpr const char* kNames[] = {"bf16", "q8_0", "q4_0", "q4_1"};

double half(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    return h & 0x8000 ? -size : size;
}

float bf16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    u = (u + 0x7FFF + (u >> 16 & 1)) & 0xFFFF0000u;
    std::memcpy(&x, &u, 4);
    return x;
}

// Random bytes in the interleaved layout; scales are finite float16 numbers around 1, now and then subnormal.
PackedArgs weight(Check& t, int format, index_t o, index_t i) {
    PackedArgs g{};
    g.format = PackedFormat(format), g.o = o, g.i = i;
    const index_t blocks = (o + 31) / 32 * ((i + 31) / 32) * 32, words = blocks * kWords[format];
    uint32_t* w = t.out<uint32_t>(words);
    for (index_t at = 0; at < words; ++at) {
        w[at] = uint32_t(t.uniform() * 4294967296.0);
        if (format == 0) w[at] = (w[at] & 0x807F807Fu) | 0x3F003F00u;  // 0.5 to 2, both signs
    }
    g.words = w;
    for (int which = 0; which < (format == 0 ? 0 : format == 3 ? 2 : 1); ++which) {
        uint16_t* halves = t.out<uint16_t>(blocks);
        for (index_t at = 0; at < blocks; ++at)
            halves[at] = uint16_t((t.below(20) ? 0x2C00 + t.below(0x800) : t.below(0x400)) | t.below(2) << 15);
        (which ? g.mins : g.scales) = halves;
    }
    return g;
}

double value(const PackedArgs& g, index_t row, index_t k) {
    const index_t block = row / 32 * ((g.i + 31) / 32) + k / 32, lane = row % 32, at = k % 32;
    const uint32_t* words = g.words + block * kWords[g.format] * 32 + lane;
    if (g.format == kBf16) {
        const uint32_t bits = at % 2 ? words[at / 2 * 32] & 0xFFFF0000u : words[at / 2 * 32] << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    }
    const double scale = half(g.scales[block * 32 + lane]);
    if (g.format == kQ8_0) return scale * (double(words[at / 4 * 32] >> at % 4 * 8 & 255) - 128);
    const double nibble = words[at % 16 / 4 * 32] >> (at % 4 * 8 + at / 16 * 4) & 15;
    return g.format == kQ4_0 ? scale * (nibble - 8) : scale * nibble + half(g.mins[block * 32 + lane]);
}

double rounded(const PackedArgs& g, index_t row, index_t k) {  // x as the product takes it
    const float* x = g.x + row * g.i;
    if (g.format == kBf16) return bf16(x[k]);
    float most = 0;
    for (index_t j = k / 32 * 32; j < k / 32 * 32 + 32; ++j) most = std::max(most, std::abs(x[j]));
    return most > 1e-35f ? std::nearbyint(x[k] * (127.0f / most)) * double(most / 127.0f) : 0;
}

}  // namespace

CASE_OF_OWN_SIZES(packed_linear) {
    for (Shape s : kShapes)
        for (int format = 0; format < 4; ++format)
            for (const bool fused : {false, true}) {
                if (format == 0 && s.i) s.i -= 5;  // bfloat16 takes rows of any length
                PackedArgs g = weight(t, format, s.o, s.i);
                g.m = s.m, g.x = t.normal(s.m * s.i), g.y = t.out(s.m * s.o);
                if (fused) g.bias = t.normal(s.o), g.residual = t.normal(s.m * s.o), g.z = t.out(s.m * s.o), g.act = kRelu;
                t.kernels.packed_linear(g);
                const auto product = [&](double* e) {
                    for (index_t at = 0; at < s.m * s.o; ++at) {
                        for (index_t k = 0; k < s.i; ++k) e[at] += rounded(g, at / s.o, k) * value(g, at % s.o, k);
                        if (fused) e[at] += g.bias[at % s.o];
                    }
                };
                if (fused) t.expect("z", g.z, s.m * s.o, 3e-6, product);
                t.expect(kNames[format], g.y, s.m * s.o, 3e-6, [&](double* e) {
                    product(e);
                    for (index_t at = 0; fused && at < s.m * s.o; ++at) e[at] = std::max(e[at], 0.0) + g.residual[at];
                });
            }
}

CASE_OF_OWN_SIZES(packed_rows) {
    for (Shape s : kShapes)
        for (int format = 0; format < 4; ++format) {
            if (format == 0 && s.i) s.i -= 5;
            PackedArgs g = weight(t, format, s.o, s.i);
            const int32_t* ids = t.ids(s.m, 0, s.o);
            g.y = t.out(s.m * s.i);
            t.kernels.packed_rows(g, ids, s.m);
            t.expect(kNames[format], g.y, s.m * s.i, 1e-7, [&](double* e) {
                for (index_t at = 0; at < s.m * s.i; ++at) e[at] = value(g, ids[at / s.i], at % s.i);
            });
        }
}

CASE_OF_OWN_SIZES(int8_peak) {
    const index_t rounds = 1000;
    float* sink = t.out(thread_limit());
    t.kernels.int8_peak(rounds, sink);
    uint32_t w = 0x01020304;
    int32_t sum = 0, total = 0;
    for (index_t round = 0; round < rounds; ++round) {
        ++w;
        for (int byte = 0; byte < 4; ++byte) sum += int32_t(w >> 8 * byte & 255);
    }
    for (int32_t i = 0; i < 24; ++i) total ^= i + sum;
    t.expect("sink", sink, 1, 1e-6, [&](double* to) { *to = double(total) * t.kernels.width; });
}
