// Products with packed weights: the words are drawn at random, and read one weight at a time by the definition of their format.
#include "check.h"

namespace {

struct Format {
    PackedFormat format;
    index_t words;  // of a block of 32
    bool scales, mins;
};
constexpr Format kFormats[] = {{kBf16, 16, false, false}, {kQ8_0, 8, true, false}, {kQ4_0, 4, true, false}, {kQ4_1, 4, true, true}};

uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
uint32_t to_bf16(float x) { return (bits_of(x) + 0x7FFF + (bits_of(x) >> 16 & 1)) >> 16; }

// float16 of 1/64 to 1 or so, of either sign.
uint16_t half(Check& t) { return uint16_t(0x2400 + t.below(0x1400) + (t.below(2) << 15)); }
double value_of_half(uint16_t h) {
    return (h >> 15 ? -1 : 1) * std::ldexp(1.0 + (h & 1023) / 1024.0, (h >> 10 & 31) - 15);
}

struct Weight {
    PackedArgs g{};
    Format f;
    index_t blocks;
    Weight(Check& t, const Format& format, index_t o, index_t i) : f(format), blocks((i + 31) / 32) {
        const index_t panels = (o + 31) / 32, count = panels * blocks * 32;
        g.format = f.format, g.o = o, g.i = i;
        uint32_t* words = t.out<uint32_t>(count * f.words);
        for (index_t at = 0; at < count * f.words; ++at) {
            const uint32_t pair = to_bf16(float(t.uniform() - 0.5)) | to_bf16(float(t.uniform() - 0.5)) << 16;
            words[at] = f.format == kBf16 ? pair : uint32_t(t.below(index_t(1) << 32));
        }
        uint16_t *scales = t.out<uint16_t>(f.scales ? count : 0), *mins = t.out<uint16_t>(f.mins ? count : 0);
        for (index_t at = 0; at < count; ++at) {
            if (f.scales) scales[at] = half(t);
            if (f.mins) mins[at] = half(t);
        }
        g.words = words, g.scales = f.scales ? scales : nullptr, g.mins = f.mins ? mins : nullptr;
    }
    double at(index_t row, index_t i) const {
        const index_t block = row / 32 * blocks + i / 32, lane = row % 32, place = i % 32;
        const auto word = [&](index_t w) { return g.words[(block * f.words + w) * 32 + lane]; };
        if (f.format == kBf16) return float_of((word(place / 2) >> 16 * (place % 2)) << 16);
        const double scale = value_of_half(g.scales[block * 32 + lane]);
        if (f.format == kQ8_0) return scale * (double(word(place / 4) >> 8 * (place % 4) & 255) - 128);
        const uint32_t byte = word(place % 16 / 4) >> 8 * (place % 4);
        const double quant = double(place < 16 ? byte & 15 : byte >> 4 & 15);
        return f.mins ? scale * quant + value_of_half(g.mins[block * 32 + lane]) : scale * (quant - 8);
    }
};

// A row of x as products take it: bfloat16, or whole multiples of max / 127 of each block.
std::vector<double> taken(const Format& f, const float* x, index_t n) {
    std::vector<double> y(static_cast<std::size_t>(n));
    for (index_t i = 0; i < n; ++i) {
        if (f.format == kBf16) {
            y[std::size_t(i)] = float_of(to_bf16(x[i]) << 16);
            continue;
        }
        float most = 0;
        for (index_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j) most = std::max(most, std::abs(x[j]));
        const float scaled = x[i] * (127.0f / most);
        y[std::size_t(i)] = double(std::nearbyint(scaled)) * double(most / 127.0f);
    }
    return y;
}

}  // namespace

CASE_OF_OWN_SIZES(packed_linear) {
    struct Size { index_t m, o, i; };
    for (const Format& f : kFormats)
        for (const Size s : {Size{0, 3, 32}, Size{1, 1, 32}, Size{1, 33, 64}, Size{3, 65, 96}, Size{7, 40, 320}, Size{8, 32, 32},
                             Size{50, 130, 544}, Size{200, 70, 160}})
            for (const bool plain : {true, false}) {
                const index_t i = s.i - (f.format == kBf16 && s.i > 32 ? 3 : 0);
                const Weight w(t, f, s.o, i);
                PackedArgs g = w.g;
                g.m = s.m, g.x = t.normal(s.m * i), g.y = t.out(s.m * s.o);
                if (!plain) g.bias = t.normal(s.o), g.residual = t.normal(s.m * s.o), g.z = t.out(s.m * s.o), g.act = kSilu;
                t.kernels.packed_linear(&g, 1);
                const auto product = [&](double* e) {
                    for (index_t r = 0; r < s.m; ++r) {
                        const std::vector<double> x = taken(f, g.x + r * i, i);
                        for (index_t o = 0; o < s.o; ++o, ++e) {
                            for (index_t k = 0; k < i; ++k) *e += w.at(o, k) * x[std::size_t(k)];
                            if (g.bias) *e += g.bias[o];
                        }
                    }
                };
                if (g.z) t.expect("z", g.z, s.m * s.o, 5e-6, product);
                t.expect("y", g.y, s.m * s.o, 5e-6, [&](double* e) {
                    product(e);
                    for (index_t at = 0; at < s.m * s.o && !plain; ++at) e[at] = e[at] / (1 + std::exp(-e[at])) + g.residual[at];
                });
            }
}

CASE_OF_OWN_SIZES(packed_rows) {
    for (const Format& f : kFormats)
        for (const index_t i : {32, 160}) {
            const index_t o = 77, n = 130, width = i - (f.format == kBf16 ? 5 : 0);
            const Weight w(t, f, o, width);
            PackedArgs g = w.g;
            const int32_t* ids = t.ids(n, 0, o);
            g.y = t.out(n * width);
            t.kernels.packed_rows(g, ids, n);
            t.expect("y", g.y, n * width, 1e-7, [&](double* e) {
                for (index_t at = 0; at < n * width; ++at) e[at] = w.at(ids[at / width], at % width);
            });
        }
}

CASE_OF_OWN_SIZES(int8_peak) {
    const index_t rounds = 100;
    float* sink = t.out(thread_limit());
    const double operations = t.kernels.int8_peak(rounds, sink);
    t.expect("operations", &operations, 1, 0, [&](double* e) { *e = 24.0 * 8 * t.kernels.width * rounds; });
    const double finite = std::isfinite(sink[0]);
    t.expect("sink", &finite, 1, 0, [&](double* e) { *e = 1; });
}
