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

// ---- layer norm: y = (x - mean) * rstd * w + b ----
static void layer_norm(const float* x, const float* w, const float* b, float* y, float* mean, float* rstd, index_t n, index_t c,
                       float eps) {
    parallel_ranges(n, row_grain(c), [&](index_t begin, index_t end) {
        for (index_t i = begin; i < end; ++i) {
            const float* row = x + i * c;
            float* to = y + i * c;
            const float m = row_sum(c, [&](index_t j, index_t lanes) { return load_n(row + j, lanes); }) / float(c);
            const float variance = row_sum(c, [&](index_t j, index_t lanes) {
                const V d = load_n(row + j, lanes, m) - m;
                return d * d;
            }) / float(c);
            const float r = 1.0f / std::sqrt(variance + eps);
            mean[i] = m;
            rstd[i] = r;
            each_vector(c, [&](index_t j, index_t lanes) {
                const V xhat = (load_n(row + j, lanes) - m) * r;
                store_n(to + j, xhat * load_n(w + j, lanes) + (b ? load_n(b + j, lanes) : V{}), lanes);
            });
        }
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
        for (index_t i = rows.begin(chunk); i < rows.end(chunk); ++i) {
            const float *dyi = dy + i * c, *xi = x + i * c;
            const float m = mean[i], r = rstd[i];
            V sum_g{}, sum_gx{};
            each_vector(c, [&](index_t j, index_t lanes) {
                const V d = load_n(dyi + j, lanes), xhat = (load_n(xi + j, lanes, m) - m) * r, g = d * load_n(w + j, lanes);
                sum_g += g;
                sum_gx += g * xhat;
                if (dw) {
                    store_n(pw + j, load_n(pw + j, lanes) + d * xhat, lanes);
                    store_n(pb + j, load_n(pb + j, lanes) + d, lanes);
                }
            });
            const float mean_g = sum(sum_g) / float(c), mean_gx = sum(sum_gx) / float(c);
            each_vector(c, [&](index_t j, index_t lanes) {
                const V xhat = (load_n(xi + j, lanes) - m) * r, g = load_n(dyi + j, lanes) * load_n(w + j, lanes);
                store_n(dx + i * c + j, (g - mean_g - xhat * mean_gx) * r, lanes);
            });
        }
    });
    if (dw) add_partials(partial, rows.chunks, 2 * c, dw, c);
    if (db) add_partials(partial + c, rows.chunks, 2 * c, db, c);
}

// ---- RMS norm: y = x * rstd * w ----
static void rms_norm(const float* x, const float* w, float* y, float* rstd, index_t n, index_t c, float eps) {
    parallel_ranges(n, row_grain(c), [&](index_t begin, index_t end) {
        for (index_t i = begin; i < end; ++i) {
            const float* row = x + i * c;
            const float square = row_sum(c, [&](index_t j, index_t lanes) {
                const V v = load_n(row + j, lanes);
                return v * v;
            }) / float(c);
            const float r = 1.0f / std::sqrt(square + eps);
            rstd[i] = r;
            each_vector(c, [&](index_t j, index_t lanes) {
                store_n(y + i * c + j, load_n(row + j, lanes) * r * load_n(w + j, lanes), lanes);
            });
        }
    });
}

static void rms_norm_vjp(const float* dy, const float* x, const float* w, const float* rstd, float* dx, float* dw, index_t n, index_t c) {
    const Rows rows(n, c, 64);
    float* partial = dw ? static_cast<float*>(scratch(2, sizeof(float) * c * rows.chunks)) : nullptr;
    parallel_for(rows.chunks, [&](index_t chunk) {
        float* pw = partial + chunk * c;
        if (dw) std::fill_n(pw, c, 0.0f);
        for (index_t i = rows.begin(chunk); i < rows.end(chunk); ++i) {
            const float *dyi = dy + i * c, *xi = x + i * c;
            const float r = rstd[i];
            V sum_gx{};
            each_vector(c, [&](index_t j, index_t lanes) {
                const V dx_hat = load_n(dyi + j, lanes) * (load_n(xi + j, lanes) * r);
                sum_gx += dx_hat * load_n(w + j, lanes);
                if (dw) store_n(pw + j, load_n(pw + j, lanes) + dx_hat, lanes);
            });
            const float mean_gx = sum(sum_gx) / float(c);
            each_vector(c, [&](index_t j, index_t lanes) {
                const V xhat = load_n(xi + j, lanes) * r, g = load_n(dyi + j, lanes) * load_n(w + j, lanes);
                store_n(dx + i * c + j, (g - xhat * mean_gx) * r, lanes);
            });
        }
    });
    if (dw) add_partials(partial, rows.chunks, c, dw, c);
}
