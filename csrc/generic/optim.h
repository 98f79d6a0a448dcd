// The optimizer's two passes over memory: the norm of the gradient, the step.

typedef float VHalf __attribute__((vector_size(W * 2), aligned(4), may_alias));
typedef double VD __attribute__((vector_size(W * 4)));  // W / 2 doubles

// Sum of squares in float64: fixed chunks, added in order.
static double sum_squares(const float* x, index_t n) {
    const index_t chunks = (n + GRAIN - 1) / GRAIN;
    double* partial = static_cast<double*>(scratch(2, sizeof(double) * chunks));
    parallel_runs(chunks, [&](index_t chunk) {
        const index_t begin = chunk * GRAIN, end = std::min(n, begin + GRAIN);
        VD a{}, b{};
        index_t i = begin;
        for (; i + W <= end; i += W) {
            const VD low = __builtin_convertvector(*reinterpret_cast<const VHalf*>(x + i), VD);
            const VD high = __builtin_convertvector(*reinterpret_cast<const VHalf*>(x + i + W / 2), VD);
            a += low * low;
            b += high * high;
        }
        a += b;
        double total = 0;
        for (int lane = 0; lane < W / 2; ++lane) total += a[lane];
        for (; i < end; ++i) total += double(x[i]) * double(x[i]);
        partial[chunk] = total;
    });
    double total = 0;
    for (index_t chunk = 0; chunk < chunks; ++chunk) total += partial[chunk];
    return total;
}

// Loshchilov & Hutter 2019; g is taken times `scale` (clipping, the mean over accumulated batches). correction = 1 - beta^step.
static void adamw(float* p, const float* g, float* m, float* v, index_t n, double lr, double beta1, double beta2, double eps,
                  double weight_decay, double correction1, double correction2, double scale) {
    const float new1 = float(1 - beta1), new2 = float(1 - beta2), decay = float(lr * weight_decay), step = float(lr / correction1);
    const float unbias = float(1 / correction2), small = float(eps), s = float(scale);
    each(n, [=](index_t j, index_t lanes) {
        const V grad = load_n(g + j, lanes) * s;
        V first = load_n(m + j, lanes), second = load_n(v + j, lanes);
        first = first + (grad - first) * new1;
        second = second + (grad * grad - second) * new2;
        store_n(m + j, first, lanes);
        store_n(v + j, second, lanes);
        const V old = load_n(p + j, lanes);  // old - old * decay: 1 - decay itself has few digits of a small decay
        store_n(p + j, old - (old * decay + first * step / (vsqrt(second * unbias) + small)), lanes);
    });
}
