// Layer norm, RMS norm, sums over rows. A row is read once from memory, then from L1; dw and db are partial sums of
// fixed chunks of rows, added in order.

INLINE index_t row_grain(index_t c) { return std::max<index_t>(1, GRAIN / std::max<index_t>(c, 1)); }  // rows of a task

struct Rows {  // chunks of rows that depend on the shape alone
    index_t n, grain, chunks;
    Rows(index_t n, index_t c, index_t most)
        : n(n), grain(std::max((n + most - 1) / most, row_grain(c))), chunks((n + grain - 1) / grain) {}
    index_t begin(index_t chunk) const { return chunk * grain; }
    index_t end(index_t chunk) const { return std::min(n, (chunk + 1) * grain); }
};

// y[i] = sum over chunks of partial[chunk * stride + i], for i < c.
static void add_partials(const float* partial, index_t chunks, index_t stride, float* y, index_t c) {
    parallel_ranges(c, std::max<index_t>(W, GRAIN / std::max<index_t>(chunks, 1) / W * W), [&](index_t begin, index_t end) {
        each_vector(end - begin, [&](index_t j, index_t lanes) {
            V total{};
            for (index_t i = 0; i < chunks; ++i) total += load_n(partial + i * stride + begin + j, lanes);
            store_n(y + begin + j, total, lanes);
        });
    });
}

// y[j] = sum over rows of x[i, j]
static void column_sum(const float* x, float* y, index_t n, index_t c) {
    const Rows rows(n, c, 64);
    float* partial = static_cast<float*>(scratch(2, sizeof(float) * c * rows.chunks));
    parallel_for(rows.chunks, [&](index_t chunk) {
        float* total = partial + chunk * c;
        std::fill_n(total, c, 0.0f);
        for (index_t i = rows.begin(chunk); i < rows.end(chunk); ++i)
            each_vector(c, [&](index_t j, index_t lanes) {
                store_n(total + j, load_n(total + j, lanes) + load_n(x + i * c + j, lanes), lanes);
            });
    });
    add_partials(partial, rows.chunks, c, y, c);
}

// f(Count<R>(), i) for the rows [begin, end), R = 4 of them at a time, then one by one: the sums across a row's lanes, each a chain of
// latencies, overlap with those of its neighbours.
template <int R>
struct Count {
    static constexpr int value = R;
};
template <class F>
INLINE void few_rows(index_t begin, index_t end, const F& f) {
    index_t i = begin;
    for (; i + 4 <= end; i += 4) f(Count<4>(), i);
    for (; i < end; ++i) f(Count<1>(), i);
}

// ---- layer norm: y = (x - mean) * rstd * w + b ----
static void layer_norm(const float* x, const float* w, const float* b, float* y, float* mean, float* rstd, index_t n, index_t c,
                       float eps) {
    parallel_ranges(n, row_grain(c), [&](index_t begin, index_t end) {
        few_rows(begin, end, [&](auto rows, index_t i) {
            constexpr int R = decltype(rows)::value;
            float *m = mean + i, *r = rstd + i;
            for (int k = 0; k < R; ++k)
                m[k] = row_sum(c, [&](index_t j, index_t lanes) { return load_n(x + (i + k) * c + j, lanes); }) / float(c);
            for (int k = 0; k < R; ++k) {
                const float variance = row_sum(c, [&](index_t j, index_t lanes) {
                    const V d = load_n(x + (i + k) * c + j, lanes, m[k]) - m[k];
                    return d * d;
                }) / float(c);
                r[k] = 1.0f / std::sqrt(variance + eps);
            }
            each_vector(c, [&](index_t j, index_t lanes) {
                const V gain = load_n(w + j, lanes), shift = b ? load_n(b + j, lanes) : V{};
                for (int k = 0; k < R; ++k) {
                    const index_t at = (i + k) * c + j;
                    store_n(y + at, (load_n(x + at, lanes) - m[k]) * r[k] * gain + shift, lanes);
                }
            });
        });
    });
}

static void layer_norm_vjp(const float* dy, const float* x, const float* w, const float* mean, const float* rstd, float* dx, float* dw,
                           float* db, index_t n, index_t c) {
    const Rows rows(n, c, 64);
    float* partial = dw ? static_cast<float*>(scratch(2, sizeof(float) * 2 * c * rows.chunks)) : nullptr;  // dw, db of each chunk
    parallel_for(rows.chunks, [&](index_t chunk) {
        float* pw = partial + chunk * 2 * c;
        float* pb = pw + c;
        if (dw) std::fill_n(pw, 2 * c, 0.0f);
        few_rows(rows.begin(chunk), rows.end(chunk), [&](auto few, index_t i) {
            constexpr int R = decltype(few)::value;
            const float *m = mean + i, *r = rstd + i;
            V sum_g[R] = {}, sum_gx[R] = {};
            each_vector(c, [&](index_t j, index_t lanes) {
                const V gain = load_n(w + j, lanes);
                V total_w = dw ? load_n(pw + j, lanes) : V{}, total_b = dw ? load_n(pb + j, lanes) : V{};
#pragma GCC unroll 4
                for (int k = 0; k < R; ++k) {
                    const index_t at = (i + k) * c + j;
                    const V d = load_n(dy + at, lanes), xhat = (load_n(x + at, lanes, m[k]) - m[k]) * r[k], g = d * gain;
                    sum_g[k] += g;
                    sum_gx[k] += g * xhat;
                    total_w = total_w + d * xhat;
                    total_b = total_b + d;
                }
                if (!dw) return;
                store_n(pw + j, total_w, lanes);
                store_n(pb + j, total_b, lanes);
            });
            float mean_g[R], mean_gx[R];
            for (int k = 0; k < R; ++k) mean_g[k] = sum(sum_g[k]) / float(c), mean_gx[k] = sum(sum_gx[k]) / float(c);
            each_vector(c, [&](index_t j, index_t lanes) {
                const V gain = load_n(w + j, lanes);
                for (int k = 0; k < R; ++k) {
                    const index_t at = (i + k) * c + j;
                    const V xhat = (load_n(x + at, lanes) - m[k]) * r[k], g = load_n(dy + at, lanes) * gain;
                    store_n(dx + at, (g - mean_g[k] - xhat * mean_gx[k]) * r[k], lanes);
                }
            });
        });
    });
    if (dw) add_partials(partial, rows.chunks, 2 * c, dw, c);
    if (db) add_partials(partial + c, rows.chunks, 2 * c, db, c);
}

// ---- RMS norm: y = x * rstd * w ----
static void rms_norm(const float* x, const float* w, float* y, float* rstd, index_t n, index_t c, float eps) {
    parallel_ranges(n, row_grain(c), [&](index_t begin, index_t end) {
        few_rows(begin, end, [&](auto rows, index_t i) {
            constexpr int R = decltype(rows)::value;
            float* r = rstd + i;
            for (int k = 0; k < R; ++k) {
                const float square = row_sum(c, [&](index_t j, index_t lanes) {
                    const V v = load_n(x + (i + k) * c + j, lanes);
                    return v * v;
                }) / float(c);
                r[k] = 1.0f / std::sqrt(square + eps);
            }
            each_vector(c, [&](index_t j, index_t lanes) {
                const V gain = load_n(w + j, lanes);
                for (int k = 0; k < R; ++k) store_n(y + (i + k) * c + j, load_n(x + (i + k) * c + j, lanes) * r[k] * gain, lanes);
            });
        });
    });
}

static void rms_norm_vjp(const float* dy, const float* x, const float* w, const float* rstd, float* dx, float* dw, index_t n, index_t c) {
    const Rows rows(n, c, 64);
    float* partial = dw ? static_cast<float*>(scratch(2, sizeof(float) * c * rows.chunks)) : nullptr;
    parallel_for(rows.chunks, [&](index_t chunk) {
        float* pw = partial + chunk * c;
        if (dw) std::fill_n(pw, c, 0.0f);
        few_rows(rows.begin(chunk), rows.end(chunk), [&](auto few, index_t i) {
            constexpr int R = decltype(few)::value;
            const float* r = rstd + i;
            V sum_gx[R] = {};
            each_vector(c, [&](index_t j, index_t lanes) {
                const V gain = load_n(w + j, lanes);
                V total = dw ? load_n(pw + j, lanes) : V{};
#pragma GCC unroll 4
                for (int k = 0; k < R; ++k) {
                    const V dx_hat = load_n(dy + (i + k) * c + j, lanes) * (load_n(x + (i + k) * c + j, lanes) * r[k]);
                    sum_gx[k] += dx_hat * gain;
                    total = total + dx_hat;
                }
                if (dw) store_n(pw + j, total, lanes);
            });
            float mean_gx[R];
            for (int k = 0; k < R; ++k) mean_gx[k] = sum(sum_gx[k]) / float(c);
            each_vector(c, [&](index_t j, index_t lanes) {
                const V gain = load_n(w + j, lanes);
                for (int k = 0; k < R; ++k) {
                    const index_t at = (i + k) * c + j;
                    const V xhat = load_n(x + at, lanes) * r[k], g = load_n(dy + at, lanes) * gain;
                    store_n(dx + at, (g - xhat * mean_gx[k]) * r[k], lanes);
                }
            });
        });
    });
    if (dw) add_partials(partial, rows.chunks, c, dw, c);
}
