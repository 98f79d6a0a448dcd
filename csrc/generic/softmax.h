// Softmax and the losses over it. A row goes through L1 or L2: its largest element, the sum of exponentials, the result.

INLINE float row_max(const float* x, index_t v) {
    const float lowest = -__builtin_inff();
    V a = splat(lowest), b = a, d = a, e = a;
    index_t j = 0;
    for (; j + 4 * W <= v; j += 4 * W) {
        a = vmax(a, load(x + j));
        b = vmax(b, load(x + j + W));
        d = vmax(d, load(x + j + 2 * W));
        e = vmax(e, load(x + j + 3 * W));
    }
    for (; j < v; j += W) a = vmax(a, load_n(x + j, std::min<index_t>(W, v - j), lowest));
    return max_lane(vmax(vmax(a, b), vmax(d, e)));  // a NaN may go under here; the sum of exponentials keeps it
}

// Sum of e^(x - shift); the terms go to y where it is given (y may be x).
INLINE float exp_sum(const float* x, float shift, float* y, index_t v) {
    return row_sum(v, [=](index_t j, index_t lanes) {
        const V e = exp(load_n(x + j, lanes, -__builtin_inff()) - shift);
        if (y) store_n(y + j, e, lanes);
        return e;
    });
}

// f(i) for every row i.
template <class F>
static void each_row(index_t n, index_t v, const F& f) {
    parallel_ranges(n, row_grain(v), [&](index_t begin, index_t end) {
        for (index_t i = begin; i < end; ++i) f(i);
    });
}

static void softmax(const float* x, float* y, index_t n, index_t v) {
    each_row(n, v, [=](index_t i) {
        float* to = y + i * v;
        const float top = row_max(x + i * v, v);
        const float total = exp_sum(x + i * v, top == -__builtin_inff() ? 0.0f : top, to, v);
        const float scale = total == 0.0f ? 1.0f : 1.0f / total;  // a row of -inf alone: zeros
        each_vector(v, [=](index_t j, index_t lanes) { store_n(to + j, load_n(to + j, lanes) * scale, lanes); });
    });
}

static void softmax_vjp(const float* dy, const float* y, float* dx, index_t n, index_t v) {
    each_row(n, v, [=](index_t i) {
        const float *dyi = dy + i * v, *yi = y + i * v;
        float* to = dx + i * v;
        const float dot = row_sum(v, [=](index_t j, index_t lanes) { return load_n(dyi + j, lanes) * load_n(yi + j, lanes); });
        each_vector(v, [=](index_t j, index_t lanes) { store_n(to + j, load_n(yi + j, lanes) * (load_n(dyi + j, lanes) - dot), lanes); });
    });
}

static void log_softmax(const float* x, float* y, index_t n, index_t v) {
    each_row(n, v, [=](index_t i) {
        const float* row = x + i * v;
        float* to = y + i * v;
        const float top = row_max(row, v), log_total = std::log(exp_sum(row, top, nullptr, v));
        each_vector(v, [=](index_t j, index_t lanes) { store_n(to + j, load_n(row + j, lanes) - top - log_total, lanes); });
    });
}

static void log_softmax_vjp(const float* dy, const float* y, float* dx, index_t n, index_t v) {
    each_row(n, v, [=](index_t i) {
        const float *dyi = dy + i * v, *yi = y + i * v;
        float* to = dx + i * v;
        const float total = row_sum(v, [=](index_t j, index_t lanes) { return load_n(dyi + j, lanes); });
        each_vector(v, [=](index_t j, index_t lanes) {
            store_n(to + j, load_n(dyi + j, lanes) - exp(load_n(yi + j, lanes)) * total, lanes);
        });
    });
}

// loss = (1 - s) (lse - x[target]) + s (lse - mean x) + z lse^2; dlogits = p (1 + 2 z lse) - s / V - (1 - s) [target]
static void cross_entropy(float* logits, const int32_t* targets, float* loss, index_t n, index_t v, float label_smoothing, float z_loss,
                          bool grad) {
    each_row(n, v, [=](index_t i) {
        float* x = logits + i * v;
        const index_t target = targets[i];
        if (target < 0) {
            loss[i] = 0.0f;
            if (grad) std::fill_n(x, v, 0.0f);
            return;
        }
        const float top = row_max(x, v), chosen = x[target] - top, share = label_smoothing / float(v);
        const float spread = label_smoothing ? row_sum(v, [=](index_t j, index_t lanes) { return load_n(x + j, lanes, top) - top; }) : 0.0f;
        const float total = exp_sum(x, top, grad ? x : nullptr, v), log_total = std::log(total), lse = top + log_total;
        loss[i] = log_total - (1.0f - label_smoothing) * chosen - share * spread + z_loss * lse * lse;
        if (!grad) return;
        const float scale = (1.0f + 2.0f * z_loss * lse) / total;
        each_vector(v, [=](index_t j, index_t lanes) { store_n(x + j, load_n(x + j, lanes) * scale - share, lanes); });
        x[target] -= 1.0f - label_smoothing;
    });
}
