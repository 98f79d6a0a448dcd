// Kernels over n rows of c: activations, norms, softmax and losses, embedding, optimizer, sampling, against plain loops in float64.
#include "check.h"

namespace {

constexpr Activation kActivations[] = {kNone, kGeluTanh, kGelu, kSilu, kRelu};

double act(double x, Activation a) {
    switch (a) {
        case kGeluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case kGelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case kSilu: return x / (1 + std::exp(-x));
        case kRelu: return std::max(x, 0.0);
        case kNone: break;
    }
    return x;
}

double slope(double x, Activation a) {  // d act / dx
    switch (a) {
        case kGeluTanh: {
            const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), th = std::tanh(u);
            return 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
        }
        case kGelu: return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
        case kSilu: {
            const double s = 1 / (1 + std::exp(-x));
            return s * (1 + x * (1 - s));
        }
        case kRelu: return x > 0;
        case kNone: break;
    }
    return 1;
}

template <class F>
void each(index_t n, const F& f) {
    for (index_t i = 0; i < n; ++i) f(i);
}

// f(i, row) for the rows of x.
template <class F>
void rows(const float* x, index_t n, index_t c, const F& f) {
    for (index_t i = 0; i < n; ++i) f(i, x + i * c);
}

double log_sum(const float* x, index_t c) {
    double top = -std::numeric_limits<double>::infinity(), total = 0;
    each(c, [&](index_t j) { top = std::max(top, double(x[j])); });
    each(c, [&](index_t j) { total += std::exp(double(x[j]) - top); });
    return top + std::log(total);
}

// What a norm's forward hands to its vjp.
struct Moments {
    float *mean, *rstd;
    Moments(Check& t, const float* x, bool centred) : mean(t.out(t.n)), rstd(t.out(t.n)) {
        rows(x, t.n, t.c, [&](index_t i, const float* row) {
            double m = 0, square = 0;
            if (centred) each(t.c, [&](index_t j) { m += row[j] / double(t.c); });
            each(t.c, [&](index_t j) { square += (row[j] - m) * (row[j] - m) / double(t.c); });
            mean[i] = float(m), rstd[i] = float(1 / std::sqrt(square + 0.1));
        });
    }
};

}  // namespace

CASE(activation) {
    for (const Activation a : kActivations) {
        const float* x = t.normal(t.n * t.c, 3);
        float* y = t.out(t.n * t.c);
        t.kernels.activation(x, y, t.n * t.c, a);
        t.expect("y", y, t.n * t.c, 1e-6, [&](double* e) { each(t.n * t.c, [&](index_t i) { e[i] = act(x[i], a); }); });
    }
}

CASE(activation_vjp) {
    for (const Activation a : kActivations) {
        const float *x = t.normal(t.n * t.c, 3), *dy = t.normal(t.n * t.c);
        float* dx = t.out(t.n * t.c);
        t.kernels.activation_vjp(dy, x, dx, t.n * t.c, a);
        t.expect("dx", dx, t.n * t.c, 2e-6, [&](double* e) { each(t.n * t.c, [&](index_t i) { e[i] = dy[i] * slope(x[i], a); }); });
    }
}

CASE(glu) {
    for (const Activation a : kActivations) {
        const float *gate = t.normal(t.n * t.c, 3), *up = t.normal(t.n * t.c);
        float* y = t.out(t.n * t.c);
        t.kernels.glu(gate, up, y, t.n * t.c, a);
        t.expect("y", y, t.n * t.c, 1e-6, [&](double* e) { each(t.n * t.c, [&](index_t i) { e[i] = act(gate[i], a) * up[i]; }); });
    }
}

CASE(glu_vjp) {
    for (const Activation a : kActivations) {
        const index_t count = t.n * t.c;
        const float *gate = t.normal(count, 3), *up = t.normal(count), *dy = t.normal(count);
        float *dgate = t.out(count), *dup = t.out(count);
        t.kernels.glu_vjp(dy, gate, up, dgate, dup, count, a);
        t.expect("dgate", dgate, count, 2e-6, [&](double* e) {
            each(count, [&](index_t i) { e[i] = double(dy[i]) * up[i] * slope(gate[i], a); });
        });
        t.expect("dup", dup, count, 2e-6, [&](double* e) { each(count, [&](index_t i) { e[i] = dy[i] * act(gate[i], a); }); });
    }
}

CASE(add) {
    const float *a = t.normal(t.n * t.c), *b = t.normal(t.n * t.c);
    float* y = t.out(t.n * t.c);
    t.kernels.add(a, b, y, t.n * t.c);
    t.expect("y", y, t.n * t.c, 1e-7, [&](double* e) { each(t.n * t.c, [&](index_t i) { e[i] = double(a[i]) + b[i]; }); });
}

CASE(dropout) {
    const auto mix = [](uint32_t h) {
        h = (h ^ (h >> 16)) * 0x7FEB352Du;
        h = (h ^ (h >> 15)) * 0x846CA68Bu;
        return h ^ (h >> 16);
    };
    const uint64_t key = 0x8000000000003039u;
    const uint32_t threshold = 0x4CCCCCCCu;
    const float* x = t.normal(t.n * t.c);
    float* y = t.out(t.n * t.c);
    t.kernels.dropout(x, y, t.n * t.c, threshold, key, 1.25f);
    t.expect("y", y, t.n * t.c, 2e-7, [&](double* e) {
        each(t.n * t.c, [&](index_t i) {
            const uint32_t bits = mix(mix(uint32_t(i) * 0x9E3779B1u + uint32_t(key)) ^ uint32_t(key >> 32));
            e[i] = bits >= threshold ? 1.25 * x[i] : 0;
        });
    });
}

CASE(column_sum) {
    const float* x = t.normal(t.n * t.c);
    float* y = t.out(t.c);
    t.kernels.column_sum(x, y, t.n, t.c);
    t.expect("y", y, t.c, 5e-6, [&](double* e) {
        rows(x, t.n, t.c, [&](index_t, const float* row) { each(t.c, [&](index_t j) { e[j] += row[j]; }); });
    });
}

CASE(layer_norm) {
    for (const bool with_bias : {true, false}) {
        const float *x = t.normal(t.n * t.c, 1, 1), *w = t.normal(t.c), *b = with_bias ? t.normal(t.c) : nullptr;
        float *y = t.out(t.n * t.c), *mean = t.out(t.n), *rstd = t.out(t.n);
        t.kernels.layer_norm(x, w, b, y, mean, rstd, t.n, t.c, 0.1f);
        const Moments m(t, x, true);
        t.expect("mean", mean, t.n, 5e-6, [&](double* e) { std::copy_n(m.mean, t.n, e); });
        t.expect("rstd", rstd, t.n, 5e-6, [&](double* e) { std::copy_n(m.rstd, t.n, e); });
        t.expect("y", y, t.n * t.c, 5e-6, [&](double* e) {
            rows(x, t.n, t.c, [&](index_t i, const float* row) {
                each(t.c, [&](index_t j) { e[i * t.c + j] = (double(row[j]) - m.mean[i]) * m.rstd[i] * w[j] + (b ? b[j] : 0); });
            });
        });
    }
}

CASE(layer_norm_vjp) {
    for (const bool need_w : {true, false}) {
        const float *dy = t.normal(t.n * t.c), *x = t.normal(t.n * t.c, 1, 1), *w = t.normal(t.c);
        const Moments m(t, x, true);
        float *dx = t.out(t.n * t.c), *dw = need_w ? t.out(t.c) : nullptr, *db = need_w ? t.out(t.c) : nullptr;
        t.kernels.layer_norm_vjp(dy, x, w, m.mean, m.rstd, dx, dw, db, t.n, t.c);
        const auto hat = [&](index_t i, index_t j) { return (double(x[i * t.c + j]) - m.mean[i]) * m.rstd[i]; };
        t.expect("dx", dx, t.n * t.c, 1e-5, [&](double* e) {
            rows(dy, t.n, t.c, [&](index_t i, const float* row) {
                double g = 0, gx = 0;
                each(t.c, [&](index_t j) {
                    g += double(row[j]) * w[j] / double(t.c);
                    gx += double(row[j]) * w[j] * hat(i, j) / double(t.c);
                });
                each(t.c, [&](index_t j) { e[i * t.c + j] = (double(row[j]) * w[j] - g - hat(i, j) * gx) * m.rstd[i]; });
            });
        });
        if (!need_w) continue;
        t.expect("dw", dw, t.c, 1e-5, [&](double* e) {
            rows(dy, t.n, t.c, [&](index_t i, const float* row) { each(t.c, [&](index_t j) { e[j] += row[j] * hat(i, j); }); });
        });
        t.expect("db", db, t.c, 1e-5, [&](double* e) {
            rows(dy, t.n, t.c, [&](index_t, const float* row) { each(t.c, [&](index_t j) { e[j] += row[j]; }); });
        });
    }
}

CASE(rms_norm) {
    const float *x = t.normal(t.n * t.c, 1, 1), *w = t.normal(t.c);
    float *y = t.out(t.n * t.c), *rstd = t.out(t.n);
    t.kernels.rms_norm(x, w, y, rstd, t.n, t.c, 0.1f);
    const Moments m(t, x, false);
    t.expect("rstd", rstd, t.n, 5e-6, [&](double* e) { std::copy_n(m.rstd, t.n, e); });
    t.expect("y", y, t.n * t.c, 5e-6, [&](double* e) {
        rows(x, t.n, t.c, [&](index_t i, const float* row) {
            each(t.c, [&](index_t j) { e[i * t.c + j] = double(row[j]) * m.rstd[i] * w[j]; });
        });
    });
}

CASE(rms_norm_vjp) {
    for (const bool need_w : {true, false}) {
        const float *dy = t.normal(t.n * t.c), *x = t.normal(t.n * t.c, 1, 1), *w = t.normal(t.c);
        const Moments m(t, x, false);
        float *dx = t.out(t.n * t.c), *dw = need_w ? t.out(t.c) : nullptr;
        t.kernels.rms_norm_vjp(dy, x, w, m.rstd, dx, dw, t.n, t.c);
        t.expect("dx", dx, t.n * t.c, 1e-5, [&](double* e) {
            rows(dy, t.n, t.c, [&](index_t i, const float* row) {
                const float* xi = x + i * t.c;
                double gx = 0;
                each(t.c, [&](index_t j) { gx += double(row[j]) * w[j] * xi[j] * m.rstd[i] / double(t.c); });
                each(t.c, [&](index_t j) { e[i * t.c + j] = (double(row[j]) * w[j] - double(xi[j]) * m.rstd[i] * gx) * m.rstd[i]; });
            });
        });
        if (!need_w) continue;
        t.expect("dw", dw, t.c, 1e-5, [&](double* e) {
            rows(dy, t.n, t.c, [&](index_t i, const float* row) {
                each(t.c, [&](index_t j) { e[j] += double(row[j]) * x[i * t.c + j] * m.rstd[i]; });
            });
        });
    }
}

CASE(softmax) {
    const float* x = t.normal(t.n * t.c, 5);
    float* y = t.out(t.n * t.c);
    t.kernels.softmax(x, y, t.n, t.c);
    t.expect("y", y, t.n * t.c, 2e-6, [&](double* e) {
        rows(x, t.n, t.c, [&](index_t i, const float* row) {
            const double all = log_sum(row, t.c);
            each(t.c, [&](index_t j) { e[i * t.c + j] = std::exp(row[j] - all); });
        });
    });
}

CASE(log_softmax) {
    const float* x = t.normal(t.n * t.c, 5);
    float* y = t.out(t.n * t.c);
    t.kernels.log_softmax(x, y, t.n, t.c);
    t.expect("y", y, t.n * t.c, 1e-6, [&](double* e) {
        rows(x, t.n, t.c, [&](index_t i, const float* row) {
            const double all = log_sum(row, t.c);
            each(t.c, [&](index_t j) { e[i * t.c + j] = row[j] - all; });
        });
    });
}

CASE(softmax_vjp) {
    const float *x = t.normal(t.n * t.c), *dy = t.normal(t.n * t.c);
    float *y = t.out(t.n * t.c), *dx = t.out(t.n * t.c);
    rows(x, t.n, t.c, [&](index_t i, const float* row) {
        const double all = log_sum(row, t.c);
        each(t.c, [&](index_t j) { y[i * t.c + j] = float(std::exp(row[j] - all)); });
    });
    t.kernels.softmax_vjp(dy, y, dx, t.n, t.c);
    t.expect("dx", dx, t.n * t.c, 5e-6, [&](double* e) {
        rows(dy, t.n, t.c, [&](index_t i, const float* row) {
            const float* yi = y + i * t.c;
            double dot = 0;
            each(t.c, [&](index_t j) { dot += double(row[j]) * yi[j]; });
            each(t.c, [&](index_t j) { e[i * t.c + j] = yi[j] * (row[j] - dot); });
        });
    });
}

CASE(log_softmax_vjp) {
    const float *x = t.normal(t.n * t.c), *dy = t.normal(t.n * t.c);
    float *y = t.out(t.n * t.c), *dx = t.out(t.n * t.c);
    rows(x, t.n, t.c, [&](index_t i, const float* row) {
        const double all = log_sum(row, t.c);
        each(t.c, [&](index_t j) { y[i * t.c + j] = float(row[j] - all); });
    });
    t.kernels.log_softmax_vjp(dy, y, dx, t.n, t.c);
    t.expect("dx", dx, t.n * t.c, 5e-6, [&](double* e) {
        rows(dy, t.n, t.c, [&](index_t i, const float* row) {
            double total = 0;
            each(t.c, [&](index_t j) { total += row[j]; });
            each(t.c, [&](index_t j) { e[i * t.c + j] = row[j] - std::exp(double(y[i * t.c + j])) * total; });
        });
    });
}

CASE(cross_entropy) {
    for (const bool plain : {true, false})
        for (const bool grad : {true, false}) {
            const double smoothing = plain ? 0 : 0.1f, z = plain ? 0 : 1e-3f;
            const float* x = t.normal(t.n * t.c, 5);
            const int32_t* targets = t.ids(t.n, -1, t.c);
            float *logits = t.copy(x, t.n * t.c), *loss = t.out(t.n);
            t.kernels.cross_entropy(logits, targets, loss, t.n, t.c, float(smoothing), float(z), grad);
            t.expect("loss", loss, t.n, 5e-6, [&](double* e) {
                rows(x, t.n, t.c, [&](index_t i, const float* row) {
                    if (targets[i] < 0) return;
                    const double all = log_sum(row, t.c);
                    double mean = 0;
                    each(t.c, [&](index_t j) { mean += row[j] / double(t.c); });
                    e[i] = all - (1 - smoothing) * row[targets[i]] - smoothing * mean + z * all * all;
                });
            });
            if (!grad) continue;
            t.expect("dlogits", logits, t.n * t.c, 5e-6, [&](double* e) {
                rows(x, t.n, t.c, [&](index_t i, const float* row) {
                    if (targets[i] < 0) return;
                    const double all = log_sum(row, t.c);
                    each(t.c, [&](index_t j) {
                        const double p = std::exp(row[j] - all) * (1 + 2 * z * all);
                        e[i * t.c + j] = p - smoothing / double(t.c) - (1 - smoothing) * (j == targets[i]);
                    });
                });
            });
        }
}

CASE(embedding) {
    const index_t v = 65;
    const float* w = t.normal(v * t.c);
    const int32_t* ids = t.ids(t.n, 0, v);
    float* y = t.out(t.n * t.c);
    t.kernels.embedding(w, ids, y, t.n, t.c);
    t.expect("y", y, t.n * t.c, 0, [&](double* e) { each(t.n * t.c, [&](index_t i) { e[i] = w[ids[i / t.c] * t.c + i % t.c]; }); });
}

CASE(embedding_vjp) {
    const index_t v = 65;
    const float* dy = t.normal(t.n * t.c);
    const int32_t* ids = t.ids(t.n, 0, v);
    for (const bool accumulate : {false, true}) {
        const float* before = t.normal(v * t.c);
        float* dw = accumulate ? t.copy(before, v * t.c) : t.out(v * t.c);
        t.kernels.embedding_vjp(dy, ids, dw, t.n, t.c, v, accumulate);
        t.expect("dw", dw, v * t.c, 5e-6, [&](double* e) {
            if (accumulate) std::copy_n(before, v * t.c, e);
            each(t.n * t.c, [&](index_t i) { e[ids[i / t.c] * t.c + i % t.c] += dy[i]; });
        });
    }
}

CASE(sum_squares) {
    const float* x = t.normal(t.n * t.c);
    const double got = t.kernels.sum_squares(x, t.n * t.c);
    t.expect("sum", &got, 1, 1e-12, [&](double* e) { each(t.n * t.c, [&](index_t i) { *e += double(x[i]) * x[i]; }); });
}

CASE(adamw) {
    const index_t count = t.n * t.c;
    const float *p0 = t.normal(count), *g = t.normal(count), *m0 = t.normal(count), *v0 = t.normal(count, 0.1, 1);
    float *p = t.copy(p0, count), *m = t.copy(m0, count), *v = t.copy(v0, count);
    const double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1;
    const double correction1 = 1 - std::pow(beta1, 3), correction2 = 1 - std::pow(beta2, 3);
    each(count, [&](index_t i) { v[i] = std::abs(v[i]); });
    t.kernels.adamw(p, g, m, v, count, lr, beta1, beta2, eps, decay, correction1, correction2, 0.5);
    const auto first = [&](index_t i) { return m0[i] + (1 - beta1) * (0.5 * g[i] - m0[i]); };
    const auto second = [&](index_t i) { return std::abs(v0[i]) + (1 - beta2) * (0.25 * g[i] * g[i] - std::abs(v0[i])); };
    t.expect("m", m, count, 1e-6, [&](double* e) { each(count, [&](index_t i) { e[i] = first(i); }); });
    t.expect("v", v, count, 1e-6, [&](double* e) { each(count, [&](index_t i) { e[i] = second(i); }); });
    t.expect("p", p, count, 1e-6, [&](double* e) {
        each(count, [&](index_t i) {
            e[i] = p0[i] * (1 - lr * decay) - lr * first(i) / correction1 / (std::sqrt(second(i) / correction2) + eps);
        });
    });
}

CASE(sample) {
    struct Setting { double temperature; index_t top_k; double top_p, min_p; };
    for (const Setting s : {Setting{0, 0, 1, 0}, Setting{1, 0, 1, 0}, Setting{0.7, 20, 0.9, 0.02}}) {
        const float* x = t.normal(t.n * t.c, 3);
        double* uniform = t.out<double>(t.n);
        each(t.n, [&](index_t i) { uniform[i] = t.uniform(); });
        int32_t* ids = t.out<int32_t>(t.n);
        t.kernels.sample(x, uniform, ids, t.n, t.c, s.temperature, s.top_k, s.top_p, s.min_p);
        t.expect("ids", ids, t.n, 0, [&](double* e) {
            rows(x, t.n, t.c, [&](index_t i, const float* row) {
                std::vector<std::pair<double, index_t>> order;  // falling logits, equal ones by rising id
                each(t.c, [&](index_t j) { order.push_back({-double(row[j]), j}); });
                std::sort(order.begin(), order.end());
                e[i] = double(order[0].second);
                if (s.temperature == 0) return;
                if (s.top_k) order.resize(std::size_t(std::min(t.c, s.top_k)));
                double all = 0, kept = 0, reached = 0;
                const auto weight = [&](std::size_t j) { return std::exp((order[0].first - order[j].first) / s.temperature); };
                for (std::size_t j = 0; j < order.size(); ++j) all += weight(j);
                std::size_t count = 0;
                while (count < order.size() && (!count || (kept / all < s.top_p && weight(count) >= s.min_p))) kept += weight(count++);
                for (std::size_t j = 0; j < count; ++j) {
                    e[i] = double(order[j].second);
                    if ((reached += weight(j)) > uniform[i] * kept) return;
                }
            });
        });
    }
}
