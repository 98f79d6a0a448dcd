// Times kernels that add partial results, on the best table of this CPU: one line a kernel, its name and the median in milliseconds.
//   determinism THREADS
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"
#include "parallel.h"

template <class F>
static void timed(const char* name, const F& f) {
    using clock = std::chrono::steady_clock;
    std::vector<double> times;
    for (int round = 0; round < 30; ++round) {
        const auto began = clock::now();
        f();
        times.push_back(std::chrono::duration<double, std::milli>(clock::now() - began).count());
    }
    std::nth_element(times.begin(), times.begin() + 15, times.end());
    std::printf("%s %.5f\n", name, times[15]);
}

static std::vector<float> numbers(index_t n) {
    std::vector<float> x(static_cast<std::size_t>(n));
    for (index_t i = 0; i < n; ++i) x[std::size_t(i)] = float((i * 7919) % 2003) * 1e-3f - 1;
    return x;
}

int main(int, char** arguments) {
    int count;
    const Kernels& k = *kernel_tables(&count)[0];
    set_thread_limit(std::atoi(arguments[1]));
    const index_t n = 2048, c = 768, wide = 3072;
    const std::vector<float> x = numbers(n * wide), dy = numbers(n * c), w = numbers(c);
    const std::vector<float> mean(std::size_t(n), 0.0f), rstd(std::size_t(n), 1.7f);
    std::vector<float> dx(dy), dw(w), db(numbers(wide));
    volatile double sink = 0;
    timed("sum_squares", [&] { sink = k.sum_squares(x.data(), n * wide); });
    timed("column_sum", [&] { k.column_sum(x.data(), db.data(), n, wide); });
    timed("layer_norm_vjp", [&] {
        k.layer_norm_vjp(dy.data(), x.data(), w.data(), mean.data(), rstd.data(), dx.data(), dw.data(), db.data(), n, c);
    });
    timed("rms_norm_vjp", [&] { k.rms_norm_vjp(dy.data(), x.data(), w.data(), rstd.data(), dx.data(), dw.data(), n, c); });
    const index_t t = 1024, h = 12, d = 64, size = t * h * d;
    const std::vector<float> q = numbers(size), key = numbers(size), v = numbers(size), dout = numbers(size);
    std::vector<float> out(q), dq(q), dk(q), dv(q), lse(numbers(t * h));
    AttentionArgs g{};
    g.q = q.data(), g.k = key.data(), g.v = v.data(), g.dout = dout.data();
    g.out = out.data(), g.lse = lse.data(), g.dq = dq.data(), g.dk = dk.data(), g.dv = dv.data();
    g.b = 1, g.tq = g.tk = t, g.h = g.hkv = h, g.d = d, g.scale = 0.125f, g.causal = true;
    g.k_head = g.v_head = d;
    g.q_row = g.k_row = g.v_row = g.dq_row = g.dk_row = g.dv_row = h * d;
    g.q_batch = g.k_batch = g.v_batch = g.dq_batch = g.dk_batch = g.dv_batch = size;
    k.attention(g);
    timed("attention_vjp", [&] { k.attention_vjp(g); });
}
