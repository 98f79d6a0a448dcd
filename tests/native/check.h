// What the native tests share: inputs that end where a page ends, outputs that begin as NaN, comparison with float64, bits for any threads.
// No Python and no library: the same source runs under sanitizers, from other compilers and for other CPUs.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "parallel.h"

struct Guarded {  // memory behind which nothing can be read or written
    char* pages;
    std::size_t bytes, room;
    explicit Guarded(std::size_t bytes) : bytes(bytes) {
        const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
        room = (bytes + page - 1) / page * page;
        pages = static_cast<char*>(mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (pages == MAP_FAILED || mprotect(pages + room, page, PROT_NONE)) throw std::bad_alloc();
        room += page;
    }
    Guarded(Guarded&& g) : pages(std::exchange(g.pages, nullptr)), bytes(g.bytes), room(g.room) {}
    ~Guarded() {
        if (pages) munmap(pages, room);
    }
    void* begin() const { return pages + room - std::size_t(sysconf(_SC_PAGESIZE)) - bytes; }
};

// One run of a case on a table: the first, on one thread, is compared with the reference; the others with the bits of the first.
class Check {
public:
    const Kernels& kernels;
    const index_t n, c;  // rows and columns
    Check(const Kernels& kernels, const char* kernel, index_t n, index_t c) : kernels(kernels), n(n), c(c), kernel_(kernel) {}

    void begin(int threads) {
        first_ = threads == 1;
        set_thread_limit(threads);
        threads_ = threads, state_ = 12345, at_ = 0;
        arrays_.clear();
    }

    double uniform() {  // [0, 1): splitmix64
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return double((z ^ (z >> 31)) >> 11) * 0x1p-53;
    }
    index_t below(index_t high) { return index_t(uniform() * double(high)); }

    float* normal(index_t count, double scale = 1, double shift = 0) {
        float* x = take<float>(count);
        for (index_t i = 0; i < count; ++i)
            x[i] = float(shift + scale * std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()));
        return x;
    }
    int32_t* ids(index_t count, index_t low, index_t high) {
        int32_t* x = take<int32_t>(count);
        for (index_t i = 0; i < count; ++i) x[i] = int32_t(low + below(high - low));
        return x;
    }
    template <class T = float>
    T* out(index_t count) {
        T* x = take<T>(count);
        std::fill_n(reinterpret_cast<unsigned char*>(x), sizeof(T) * std::size_t(count), 0xFF);  // NaN, -1
        return x;
    }
    template <class T>
    T* copy(const T* from, index_t count) {
        T* x = take<T>(count);
        std::copy_n(from, count, x);
        return x;
    }

    // |got - e| <= tolerance * the largest |e| (0.1 at least); fill(e) writes the reference.
    template <class T, class F>
    void expect(const char* output, const T* got, index_t count, double tolerance, const F& fill) {
        if (!same_bits(output, got, count)) return;
        std::vector<double> e(static_cast<std::size_t>(count), 0.0);
        fill(e.data());
        double most = 0.1, worst = 0;
        for (const double x : e)
            if (std::isfinite(x)) most = std::max(most, std::abs(x));
        for (index_t i = 0; i < count; ++i) {
            const double error = double(got[i]) == e[std::size_t(i)] ? 0 : std::abs(double(got[i]) - e[std::size_t(i)]) / most;
            worst = error == error ? std::max(worst, error) : std::numeric_limits<double>::infinity();
        }
        judge(output, worst, tolerance);
    }

    // The mean squared error over the mean square.
    template <class F>
    void expect_nmse(const char* output, const float* got, index_t count, double limit, const F& fill) {
        if (!same_bits(output, got, count)) return;
        std::vector<double> e(static_cast<std::size_t>(count), 0.0);
        fill(e.data());
        double error = 0, square = 1e-30;
        for (index_t i = 0; i < count; ++i) {
            const double d = double(got[i]) - e[std::size_t(i)];
            error += d * d, square += e[std::size_t(i)] * e[std::size_t(i)];
        }
        judge(output, error == error ? error / square : std::numeric_limits<double>::infinity(), limit);
    }

    static inline std::atomic<int> failures{0}, comparisons{0};
    static inline double worst = 0;  // error as a part of its tolerance, over all outputs of a kernel

private:
    const char* kernel_;
    bool first_ = true;
    int threads_ = 1;
    uint64_t state_ = 0;
    std::size_t at_ = 0;
    std::vector<Guarded> arrays_;
    std::vector<std::vector<char>> bits_;

    template <class T>
    T* take(index_t count) {
        arrays_.emplace_back(sizeof(T) * std::size_t(count));
        return static_cast<T*>(arrays_.back().begin());
    }

    void fail(const char* output, const std::string& what) {
        if (++failures <= 20)
            std::printf("FAILED %s %s: %s, n=%td c=%td threads=%d: %s\n", kernels.name, kernel_, output, n, c, threads_, what.c_str());
    }
    void judge(const char* output, double error, double tolerance) {
        ++comparisons;
        worst = std::max(worst, error ? error / tolerance : 0);
        if (error > tolerance) fail(output, "error " + std::to_string(error) + ", allowed " + std::to_string(tolerance));
    }

    // Keeps the bits of the first run (-> true), compares the others'.
    template <class T>
    bool same_bits(const char* output, const T* got, index_t count) {
        const char* bytes = reinterpret_cast<const char*>(got);
        const std::size_t size = sizeof(T) * std::size_t(count);
        if (first_) {
            bits_.emplace_back(bytes, bytes + size);
            return true;
        }
        ++comparisons;
        if (at_ >= bits_.size() || !std::equal(bits_[at_].begin(), bits_[at_].end(), bytes, bytes + size))
            fail(output, "other bits than on one thread");
        ++at_;
        return false;
    }
};

struct Case {
    const char* kernel;
    void (*run)(Check&);
    bool own_sizes;  // knows its shapes itself; otherwise called for many (n, c)
};
inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}
inline bool add_case(const char* kernel, void (*run)(Check&), bool own_sizes) {
    cases().push_back({kernel, run, own_sizes});
    return true;
}
#define CASE_OF(kernel, own_sizes)                                                    \
    static void check_##kernel(Check& t);                                             \
    static const bool kernel##_added = add_case(#kernel, check_##kernel, own_sizes);  \
    static void check_##kernel(Check& t)
#define CASE(kernel) CASE_OF(kernel, false)
#define CASE_OF_OWN_SIZES(kernel) CASE_OF(kernel, true)
