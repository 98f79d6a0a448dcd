// Matrix products, attention and positions against plain loops in float64.
#include "check.h"

namespace {

double act(double x, Activation a) { return a == kSilu ? x / (1 + std::exp(-x)) : 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }  // or gelu

float rounded(float x) {  // to bfloat16: nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
    std::memcpy(&x, &bits, 4);
    return x;
}

struct Shape {
    index_t batch, m, n, k;
};
constexpr Shape kShapes[] = {{1, 0, 5, 3},    {1, 3, 4, 0},  {1, 1, 1, 1},    {1, 1, 33, 17},  {1, 2, 65, 64},   {1, 5, 7, 9},
                             {1, 8, 129, 31}, {1, 9, 48, 5}, {3, 17, 49, 33}, {1, 63, 24, 65}, {1, 129, 97, 96}, {1, 40, 530, 780},
                             {5, 90, 70, 80}};

}  // namespace

CASE_OF_OWN_SIZES(matmul) {
    for (const Shape s : kShapes)
        for (const bool ta : {false, true})
            for (const bool tb : {false, true})
                for (const int variant : {0, 1, 2, 3, 4, 5}) {  // plain; bias, activation, residual, what the activation took; added to C
                    const bool bf16 = variant >= 3, finished = variant % 3 == 1, added = variant % 3 == 2;
                    const index_t count = s.batch * s.m * s.n;
                    MatmulArgs g{};
                    g.a = t.normal(s.batch * s.m * s.k), g.b = t.normal(s.batch * s.k * s.n);
                    g.m = s.m, g.n = s.n, g.k = s.k, g.c_row = s.n;
                    g.a_row = ta ? 1 : s.k, g.a_col = ta ? s.m : 1;
                    g.b_row = tb ? 1 : s.n, g.b_col = tb ? s.k : 1;
                    g.batch = s.batch, g.a_batch = s.m * s.k, g.b_batch = s.k * s.n, g.c_batch = s.m * s.n;
                    const float* before = t.normal(count);
                    g.c = added ? t.copy(before, count) : t.out(count);
                    g.accumulate = added, g.bf16 = bf16;
                    if (finished) g.bias = t.normal(s.n), g.residual = t.normal(count), g.z = t.out(count), g.act = ta ? kSilu : kGelu;
                    t.kernels.matmul(g);
                    const auto product = [&](double* e) {
                        for (index_t at = 0; at < count; ++at) {
                            const index_t entry = at / g.c_batch, i = at % g.c_batch / s.n, j = at % s.n;
                            const float *a = g.a + entry * g.a_batch + i * g.a_row, *b = g.b + entry * g.b_batch + j * g.b_col;
                            for (index_t k = 0; k < s.k; ++k) {
                                const float ak = a[k * g.a_col], bk = b[k * g.b_row];
                                e[at] += bf16 ? double(rounded(ak)) * rounded(bk) : double(ak) * bk;
                            }
                            if (finished) e[at] += g.bias[j];
                            if (added) e[at] += before[at];
                        }
                    };
                    if (!finished) {
                        t.expect_nmse("c", g.c, count, 1e-12, product);
                        continue;
                    }
                    t.expect_nmse("z", g.z, count, 1e-12, product);
                    t.expect("c", g.c, count, 2e-6, [&](double* e) {
                        product(e);
                        for (index_t at = 0; at < count; ++at) e[at] = act(e[at], g.act) + g.residual[at];
                    });
                }
}

CASE_OF_OWN_SIZES(fma_peak) {  // x a + b from 0, 1, ...: as many chains as registers bear
    const index_t rounds = 1000, chains = t.kernels.width == 16 ? 24 : 12;
    float* sink = t.out(thread_limit());
    const double flops = t.kernels.fma_peak(rounds, sink, false);
    t.expect("flops", &flops, 1, 0, [&](double* e) { *e = 2.0 * double(chains * t.kernels.width * rounds); });
    t.expect("sink", sink, 1, 1e-4, [&](double* e) { *e = double((chains - 1) * chains / 2 * t.kernels.width); });
}

// ---- attention -------------------------------------------------------------------------------------------------------

namespace {

struct Setting {
    index_t b, tq, tk, h, hkv, d, window;
    bool causal, segments, starts;
    int bias;  // 0 none, 1 (B, H, Tq, Tk), 2 (1, 1, Tq, Tk)
    uint32_t drop = 0;
};
constexpr Setting kSettings[] = {
    {1, 1, 1, 1, 1, 1, 0, true, false, false, 0},        {2, 5, 5, 2, 2, 7, 0, true, false, false, 0},
    {2, 1, 19, 4, 2, 16, 0, true, false, true, 0},       {1, 3, 40, 6, 2, 33, 0, true, false, true, 0},
    {2, 33, 33, 2, 1, 32, 0, true, true, false, 1},      {1, 17, 50, 2, 2, 24, 0, false, false, false, 2},
    {2, 70, 70, 2, 2, 12, 13, true, true, false, 0},     {1, 260, 260, 2, 2, 8, 0, true, false, false, 0},
    {1, 30, 1000, 2, 1, 20, 0, false, false, false, 0},  {1, 300, 300, 1, 1, 64, 40, false, false, false, 2},
    {2, 70, 70, 4, 2, 12, 0, true, true, false, 1, 1u << 30}, {1, 3, 300, 1, 1, 16, 0, false, false, false, 0, 1u << 30},
};

// One head's queries against its keys, in float64: p(i, j), which is 0 where i does not see j.
struct Attention {
    const AttentionArgs& g;
    index_t b, h, kv;
    std::vector<double> p, lse;  // (tq, tk), (tq,)
    double dot(const float* x, const float* y) const {
        double total = 0;
        for (index_t i = 0; i < g.d; ++i) total += double(x[i]) * y[i];
        return total;
    }
    const float* q(index_t i) const { return g.q + b * g.q_batch + i * g.q_row + h * g.d; }
    const float* k(index_t j) const { return g.k + b * g.k_batch + j * g.k_row + kv * g.k_head; }
    const float* v(index_t j) const { return g.v + b * g.v_batch + j * g.v_row + kv * g.v_head; }
    index_t out(index_t i) const { return ((b * g.tq + i) * g.h + h) * g.d; }
    bool sees(index_t i, index_t j) const {
        const index_t at = (g.starts ? index_t(g.starts[b]) : g.tk - g.tq) + i;
        if (g.causal && j > at) return false;
        if (g.window && (j <= at - g.window || j >= at + g.window)) return false;
        return !g.q_segments || (g.q_segments[b * g.tq + i] > 0 && g.q_segments[b * g.tq + i] == g.k_segments[b * g.tk + j]);
    }
    // What p(i, j) is multiplied with where some are dropped.
    double kept(index_t i, index_t j) const {
        const auto mix = [](uint32_t x) {
            x = (x ^ (x >> 16)) * 0x7FEB352Du;
            x = (x ^ (x >> 15)) * 0x846CA68Bu;
            return x ^ (x >> 16);
        };
        const uint32_t row = uint32_t((b * g.h + h) * g.tq + i), low = mix(uint32_t(j) * 0x9E3779B1u + uint32_t(g.key));
        return mix(low ^ uint32_t(g.key >> 32) ^ row * 0x85EBCA77u) >= g.drop ? 1 / (1 - g.drop / 4294967296.0) : 0;
    }
    Attention(const AttentionArgs& args, index_t b, index_t h)
        : g(args), b(b), h(h), kv(h / (args.h / args.hkv)), p(std::size_t(args.tq * args.tk), 0.0), lse(std::size_t(args.tq)) {
        for (index_t i = 0; i < g.tq; ++i) {
            double *row = p.data() + i * g.tk, total = 0;
            for (index_t j = 0; j < g.tk; ++j) {
                if (!sees(i, j)) continue;
                row[j] = std::exp(g.scale * dot(q(i), k(j)) + (g.bias ? g.bias[b * g.bias_b + h * g.bias_h + i * g.bias_q + j] : 0));
                total += row[j];
            }
            lse[std::size_t(i)] = std::log(total);
            for (index_t j = 0; j < g.tk && total > 0; ++j) row[j] /= total;
        }
    }
};

template <class F>
void each_head(const AttentionArgs& g, const F& f) {
    for (index_t b = 0; b < g.b; ++b)
        for (index_t h = 0; h < g.h; ++h) f(Attention(g, b, h));
}

AttentionArgs arguments(Check& t, const Setting& s) {
    AttentionArgs g{};
    g.drop = s.drop, g.key = 0x8000000000003039u;
    g.b = s.b, g.tq = s.tq, g.tk = s.tk, g.h = s.h, g.hkv = s.hkv, g.d = s.d, g.window = s.window, g.causal = s.causal;
    g.scale = float(1 / std::sqrt(double(s.d)));
    g.q_row = s.h * s.d, g.q_batch = s.tq * g.q_row, g.k_batch = g.v_batch = 2 * s.tk * s.hkv * s.d;
    g.k_row = g.v_row = s.starts ? s.d : 2 * s.hkv * s.d;  // head by head as in a cache, or all side by side as in a fused projection
    g.k_head = g.v_head = s.starts ? s.tk * s.d : s.d;
    g.q = t.normal(s.b * g.q_batch);
    g.k = t.normal(s.b * g.k_batch);
    g.v = g.k + s.hkv * g.k_head;
    if (s.segments) {  // padding, then two documents
        int32_t* segments = t.ids(s.b * s.tk, 0, 1);
        for (index_t i = 0; i < s.b * s.tk; ++i) segments[i] = i % s.tk < 3 ? 0 : i % s.tk < s.tk / 2 ? 1 : 2;
        g.q_segments = g.k_segments = segments;
    }
    if (s.starts) {
        int64_t* starts = t.out<int64_t>(s.b);
        for (index_t i = 0; i < s.b; ++i) starts[i] = i ? 2 : s.tk - s.tq;
        g.starts = starts;
    }
    if (s.bias) {
        g.bias_q = s.tk, g.bias_h = s.bias == 1 ? s.tq * s.tk : 0, g.bias_b = s.bias == 1 ? s.h * s.tq * s.tk : 0;
        g.bias = t.normal((s.bias == 1 ? s.b * s.h : 1) * s.tq * s.tk);
    }
    g.out = t.out(s.b * s.tq * s.h * s.d);
    g.lse = t.out(s.b * s.h * s.tq);
    return g;
}

}  // namespace

CASE_OF_OWN_SIZES(attention) {
    for (const Setting& s : kSettings) {
        const AttentionArgs g = arguments(t, s);
        t.kernels.attention(g);
        t.expect("lse", g.lse, g.b * g.h * g.tq, 2e-6, [&](double* e) {
            each_head(g, [&](const Attention& a) { std::copy(a.lse.begin(), a.lse.end(), e + (a.b * g.h + a.h) * g.tq); });
        });
        t.expect("out", g.out, g.b * g.tq * g.h * g.d, 5e-6, [&](double* e) {
            each_head(g, [&](const Attention& a) {
                for (index_t at = 0; at < g.tq * g.tk; ++at)
                    for (index_t d = 0; d < g.d; ++d)
                        e[a.out(at / g.tk) + d] += a.p[std::size_t(at)] * a.kept(at / g.tk, at % g.tk) * a.v(at % g.tk)[d];
            });
        });
    }
}

CASE_OF_OWN_SIZES(attention_vjp) {
    for (const Setting& s : kSettings) {
        AttentionArgs g = arguments(t, s);
        t.kernels.attention(g);
        const index_t q_count = g.b * g.tq * g.h * g.d, k_count = g.b * g.tk * g.hkv * g.d;
        const index_t bias_count = s.bias ? (s.bias == 1 ? g.b * g.h : 1) * g.tq * g.tk : 0;
        g.dout = t.normal(q_count);
        g.dq = t.out(q_count), g.dk = t.out(k_count), g.dv = t.out(k_count);
        g.dq_row = g.q_row, g.dq_batch = g.q_batch, g.dk_row = g.dv_row = g.hkv * g.d, g.dk_batch = g.dv_batch = g.tk * g.dk_row;
        if (s.bias) std::fill_n(g.dbias = t.out(bias_count), bias_count, 0.0f);
        t.kernels.attention_vjp(g);
        std::vector<double> dq(std::size_t(q_count), 0.0), dk(std::size_t(k_count), 0.0), dv(dk), dbias(std::size_t(bias_count), 0.0);
        const auto fill = [&] {
            each_head(g, [&](const Attention& a) {
                for (index_t i = 0; i < g.tq; ++i) {
                    double delta = 0;
                    std::vector<double> dp(std::size_t(g.tk));
                    for (index_t j = 0; j < g.tk; ++j) {
                        dp[std::size_t(j)] = a.dot(g.dout + a.out(i), a.v(j)) * a.kept(i, j);
                        delta += a.p[std::size_t(i * g.tk + j)] * dp[std::size_t(j)];
                    }
                    for (index_t j = 0; j < g.tk; ++j) {
                        const double p = a.p[std::size_t(i * g.tk + j)], ds = p * (dp[std::size_t(j)] - delta);
                        const index_t key = a.b * g.dk_batch + j * g.dk_row + a.kv * g.d;
                        if (p == 0) continue;
                        if (g.dbias) dbias[std::size_t(a.b * g.bias_b + a.h * g.bias_h + i * g.bias_q + j)] += ds;
                        for (index_t d = 0; d < g.d; ++d) {
                            dq[std::size_t(a.out(i) + d)] += ds * g.scale * a.k(j)[d];
                            dk[std::size_t(key + d)] += ds * g.scale * a.q(i)[d];
                            dv[std::size_t(key + d)] += p * a.kept(i, j) * g.dout[a.out(i) + d];
                        }
                    }
                }
            });
        };
        t.expect("dq", g.dq, q_count, 1e-5, [&](double* e) { fill(), std::copy(dq.begin(), dq.end(), e); });
        t.expect("dk", g.dk, k_count, 1e-5, [&](double* e) { std::copy(dk.begin(), dk.end(), e); });
        t.expect("dv", g.dv, k_count, 1e-5, [&](double* e) { std::copy(dv.begin(), dv.end(), e); });
        if (s.bias) t.expect("dbias", g.dbias, bias_count, 1e-5, [&](double* e) { std::copy(dbias.begin(), dbias.end(), e); });
    }
}

CASE_OF_OWN_SIZES(rope) {
    for (const index_t heads : {1, 3})
        for (const index_t rotary : {2, 6, 16, 34})
            for (const bool interleaved : {false, true})
                for (const bool inverse : {false, true}) {
                    const index_t rows = 37, d = rotary + heads, x_row = heads * d + 5, places = 50, half = rotary / 2;
                    const float* x = t.normal((rows - 1) * x_row + heads * d);
                    const float *cos = t.normal(places * half), *sin = t.normal(places * half);
                    const int32_t* positions = t.ids(rows, 0, places);
                    float* y = t.out(rows * heads * d);
                    t.kernels.rope(x, y, cos, sin, positions, rows, heads, d, rotary, x_row, interleaved, inverse);
                    t.expect("y", y, rows * heads * d, 1e-6, [&](double* e) {
                        for (index_t row = 0; row < rows; ++row)
                            for (index_t h = 0; h < heads; ++h, e += d) {
                                const float* from = x + row * x_row + h * d;
                                std::copy_n(from, d, e);
                                for (index_t i = 0; i < half; ++i) {
                                    const index_t one = interleaved ? 2 * i : i, two = interleaved ? 2 * i + 1 : half + i;
                                    const index_t at = positions[row] * half + i;
                                    const double c = cos[at], s = inverse ? -sin[at] : sin[at];
                                    e[one] = from[one] * c - from[two] * s, e[two] = from[two] * c + from[one] * s;
                                }
                            }
                    });
                }
}

// ---- the head and its loss -------------------------------------------------------------------------------------------

CASE_OF_OWN_SIZES(linear_cross_entropy) {
    struct Size { index_t n, v, c, budget; };
    for (const Size s : {Size{0, 5, 3, 100}, Size{1, 1, 1, 100}, Size{5, 33, 17, 100}, Size{50, 97, 24, 5000}, Size{150, 300, 40, 1000000},
                         Size{9, 4300, 20, 1000000}})
        for (const bool plain : {true, false}) {
            const double smoothing = plain ? 0 : 0.1f, z = plain ? 0 : 1e-3f;
            HeadArgs g{};
            g.h = t.normal(s.n * s.c), g.w = t.normal(s.v * s.c), g.b = plain ? nullptr : t.normal(s.v);
            g.targets = t.ids(s.n, -1, s.v);
            g.loss = t.out(s.n), g.dh = t.out(s.n * s.c), g.dw = t.out(s.v * s.c), g.db = plain ? nullptr : t.out(s.v);
            g.n = s.n, g.v = s.v, g.c = s.c, g.budget = s.budget;
            g.label_smoothing = float(smoothing), g.z_loss = float(z);
            t.kernels.linear_cross_entropy(g);
            std::vector<double> dh(std::size_t(s.n * s.c), 0.0), dw(std::size_t(s.v * s.c), 0.0), db(std::size_t(s.v), 0.0);
            t.expect("loss", g.loss, s.n, 5e-6, [&](double* e) {
                for (index_t i = 0; i < s.n; ++i) {
                    if (g.targets[i] < 0) continue;
                    std::vector<double> x(static_cast<std::size_t>(s.v));
                    double top = -1e300, total = 0, mean = 0;
                    for (index_t j = 0; j < s.v; ++j) {
                        double& logit = x[std::size_t(j)] = g.b ? g.b[j] : 0;
                        for (index_t k = 0; k < s.c; ++k) logit += double(g.h[i * s.c + k]) * g.w[j * s.c + k];
                        top = std::max(top, logit), mean += logit / double(s.v);
                    }
                    for (const double logit : x) total += std::exp(logit - top);
                    const double lse = top + std::log(total);
                    e[i] = lse - (1 - smoothing) * x[std::size_t(g.targets[i])] - smoothing * mean + z * lse * lse;
                    for (index_t j = 0; j < s.v; ++j) {
                        const double p = std::exp(x[std::size_t(j)] - lse) * (1 + 2 * z * lse);
                        const double dx = p - smoothing / double(s.v) - (1 - smoothing) * (j == g.targets[i]);
                        db[std::size_t(j)] += dx;
                        for (index_t k = 0; k < s.c; ++k) {
                            dh[std::size_t(i * s.c + k)] += dx * g.w[j * s.c + k];
                            dw[std::size_t(j * s.c + k)] += dx * g.h[i * s.c + k];
                        }
                    }
                }
            });
            t.expect("dh", g.dh, s.n * s.c, 1e-5, [&](double* e) { std::copy(dh.begin(), dh.end(), e); });
            t.expect("dw", g.dw, s.v * s.c, 1e-5, [&](double* e) { std::copy(dw.begin(), dw.end(), e); });
            if (g.db) t.expect("db", g.db, s.v, 1e-5, [&](double* e) { std::copy(db.begin(), db.end(), e); });
        }
}
