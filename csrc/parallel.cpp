// All of the library's OpenMP: it makes the team of workers, once. Serial where the compiler has none.
//
// Regions do not use OpenMP's own end, where every thread of the team must arrive: on a busy machine a worker that the system has not
// let run for some milliseconds would hold up a region of microseconds. Here the caller takes chunks like everybody else, closes the gate
// when none is left and waits only for workers that have entered.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace {

std::atomic<int> limit{1};
thread_local bool inside = false;  // in a chunk: a region within it runs serially

#ifdef __linux__
// cgroup v2 cpu.max or v1 cfs quota of this process: whole CPUs, at least 1; 0 where there is no limit.
int cgroup_quota() {
    char path[512] = "", line[512];
    if (FILE* f = std::fopen("/proc/self/cgroup", "r")) {
        while (std::fgets(line, sizeof line, f))
            if (std::strncmp(line, "0::", 3) == 0)
                std::snprintf(path, sizeof path, "/sys/fs/cgroup%.*s", int(std::strcspn(line + 3, "\n")), line + 3);
        std::fclose(f);
    }
    double best = 0;
    for (;; *std::strrchr(path, '/') = 0) {  // a parent's quota holds too
        char name[600];
        std::snprintf(name, sizeof name, "%s/cpu.max", path);
        double quota, period;
        if (FILE* f = std::fopen(name, "r")) {
            if (std::fscanf(f, "%lf %lf", &quota, &period) == 2 && period > 0)
                best = best ? std::min(best, quota / period) : quota / period;
            std::fclose(f);
        }
        if (std::strlen(path) <= std::strlen("/sys/fs/cgroup") || !std::strrchr(path, '/')) break;
    }
    double quota = 0, period = 0;
    if (FILE* f = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
        if (std::fscanf(f, "%lf", &quota) != 1) quota = 0;
        std::fclose(f);
    }
    if (FILE* f = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
        if (std::fscanf(f, "%lf", &period) != 1) period = 0;
        std::fclose(f);
    }
    if (quota > 0 && period > 0) best = best ? std::min(best, quota / period) : quota / period;
    return best > 0 ? std::max(1, int(std::ceil(best))) : 0;
}
#endif

#ifdef _OPENMP
constexpr uint64_t kOpen = uint64_t(1) << 31, kEntered = kOpen - 1;
constexpr int kSpins = 4000;  // about 0.1 ms: as long as regions follow one another, nobody sleeps

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // some tens of cycles, as x86's pause; "yield" does nothing on most cores
#endif
}

constexpr int kPieces = 3;
struct Ahead {  // see read_ahead; what a thread reads of it while another one writes may be of two calls, which does no harm
    std::atomic<unsigned> number{0};
    std::atomic<const char*> data[kPieces] = {};
    std::atomic<std::size_t> bytes[kPieces] = {};
};

class Fetcher {  // of the run of one thread
  public:
    void some(const Ahead& ahead, int thread) {  // instead of a pause
        if (const unsigned number = ahead.number.load(std::memory_order_relaxed); number != seen) {
            std::size_t all = 0;
            for (int i = 0; i < kPieces; ++i) all += ahead.bytes[i].load(std::memory_order_relaxed);
            const std::size_t run = all / std::max(1, limit.load(std::memory_order_relaxed));
            seen = number, left = std::min(run, kMost), piece = 0;
            for (at = run * thread; piece < kPieces && at >= bytes_of(ahead); ++piece) at -= bytes_of(ahead);
        }
        if (!left || piece == kPieces) return pause();
        const char* data = ahead.data[piece].load(std::memory_order_relaxed) + at;
        for (int line = 0; line < 4; ++line) __builtin_prefetch(data + 64 * line, 0, 2);
        at += 256, left -= std::min<std::size_t>(left, 256);
        if (at >= bytes_of(ahead)) at = 0, ++piece;
    }

  private:
    static constexpr std::size_t kMost = 256 * 1024;  // beside what else an L2 holds
    unsigned seen = 0;
    int piece = 0;
    std::size_t at = 0, left = 0;
    std::size_t bytes_of(const Ahead& ahead) const { return ahead.bytes[piece].load(std::memory_order_relaxed); }
};

struct Pool {
    std::mutex region;                         // held by the caller whose region runs
    alignas(64) std::atomic<index_t> next{0};  // chunk to take; apart from what waiting workers look at
    alignas(64) std::atomic<uint64_t> gate{0};  // number of the region << 32 | open | workers that have entered
    index_t chunks = 0;
    void (*body)(void*, index_t) = nullptr;
    void* context = nullptr;
    std::exception_ptr error;
    std::atomic<bool> failed{false};
    Ahead ahead;
    Fetcher fetched;                // by the caller
    int workers = 0;                // that exist; those from thread_limit() - 1 on are idle
    std::mutex sleep;
    std::condition_variable opened, resized;
    std::atomic<int> sleepers{0};

    void take_chunks() {
        inside = true;
        try {
            for (index_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) body(context, i);
        } catch (...) {
            next = chunks;
            if (!failed.exchange(true)) error = std::current_exception();
        }
        inside = false;
    }

    void work(int index) {  // never returns
        uint64_t seen = 0;
        Fetcher fetch;
        const auto is_new = [&](uint64_t g) { return (g & kOpen) && g >> 32 != seen; };
        for (int spins = 0;;) {
            uint64_t g = gate.load();
            if (index >= limit.load(std::memory_order_relaxed) - 1) {
                std::unique_lock<std::mutex> lock(sleep);
                resized.wait(lock, [&] { return index < limit.load() - 1; });
            } else if (!is_new(g)) {
                if (++spins < kSpins) {
                    fetch.some(ahead, index + 1);
                    continue;
                }
                ++sleepers;
                std::unique_lock<std::mutex> lock(sleep);
                opened.wait(lock, [&] { return is_new(gate.load()) || index >= limit.load() - 1; });
                --sleepers;
            } else if (gate.compare_exchange_strong(g, g + 1)) {
                seen = g >> 32;
                take_chunks();
                gate.fetch_sub(1);
            }
            spins = 0;
        }
    }

    void run(index_t n, void (*f)(void*, index_t), void* with) {  // region is held
        chunks = n, body = f, context = with, next = 0, failed = false;
        gate = ((gate.load() >> 32) + 1) << 32 | kOpen;
        if (sleepers.load()) {
            std::lock_guard<std::mutex> lock(sleep);
            opened.notify_all();
        }
        take_chunks();
        gate.fetch_and(~kOpen);
        for (int spins = 0; gate.load() & kEntered; ++spins) spins < kSpins ? fetched.some(ahead, 0) : std::this_thread::yield();
    }
};

Pool* pool = new Pool;  // never destroyed: workers may outlive static destructors

// How many of n threads are to be had: they are created, and end. libgomp ends the process where one is refused.
int prove(int n) {
    std::vector<std::thread> threads;
    std::atomic<bool> go{false};
    try {
        for (int i = 0; i < n; ++i) threads.emplace_back([&] { while (!go.load()) std::this_thread::yield(); });
    } catch (...) {
    }
    go = true;
    for (auto& t : threads) t.join();
    return int(threads.size());
}

// Workers for `threads` threads, the caller's included; fewer where the system refuses them.
void grow(int threads) {
    const int first = pool->workers, got = prove(threads - 1 - first);
    if (got > 0) {
        try {
            std::thread([first, got] {
#pragma omp parallel for num_threads(got) schedule(static, 1)
                for (int i = 0; i < got; ++i) pool->work(first + i);
            }).detach();
            pool->workers += got;
        } catch (...) {
        }
    }
    if (pool->workers < threads - 1) set_thread_limit(pool->workers + 1);
}

#ifdef __linux__
// A forked child has none of the workers: it gets a pool of its own, and its parent's is left as it is.
void before_fork() { pool->region.lock(); }
void in_parent() { pool->region.unlock(); }
void in_child() { pool = new Pool; }
const int registered = pthread_atfork(before_fork, in_parent, in_child);
#endif
#endif

}  // namespace

int default_thread_limit() {
    int n = int(std::max(1u, std::thread::hardware_concurrency()));
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = std::max(1, CPU_COUNT(&set));
    if (const int quota = cgroup_quota()) n = std::min(n, quota);
#endif
    return n;
}

int thread_limit() { return inside ? 1 : limit.load(std::memory_order_relaxed); }

void set_thread_limit(int n) {
#ifdef _OPENMP
    std::lock_guard<std::mutex> lock(pool->sleep);
    limit = n;
    pool->resized.notify_all();
    pool->opened.notify_all();
#else
    limit = 1;
    (void)n;
#endif
}

void read_ahead(std::initializer_list<Piece> pieces) {
#ifdef _OPENMP
    Ahead& ahead = pool->ahead;
    for (int i = 0; i < kPieces; ++i) {
        const Piece piece = i < int(pieces.size()) ? pieces.begin()[i] : Piece{nullptr, 0};
        ahead.data[i].store(static_cast<const char*>(piece.data), std::memory_order_relaxed);
        ahead.bytes[i].store(piece.bytes, std::memory_order_relaxed);
    }
    ahead.number.fetch_add(1, std::memory_order_relaxed);
#else
    (void)pieces;
#endif
}

void run_chunks(index_t chunks, void (*body)(void*, index_t), void* context) {
#ifdef _OPENMP
    if (thread_limit() > 1 && chunks > 1 && pool->region.try_lock()) {  // taken: another Python thread's region runs, this one is serial
        std::unique_lock<std::mutex> region(pool->region, std::adopt_lock);
        if (thread_limit() - 1 > pool->workers) grow(thread_limit());
        pool->run(chunks, body, context);
        if (pool->failed) {
            const std::exception_ptr error = std::move(pool->error);
            region.unlock();
            std::rethrow_exception(error);
        }
        return;
    }
#endif
    for (index_t i = 0; i < chunks; ++i) body(context, i);
}

void run_serially(void (*body)(void*), void* context) {
    const bool before = inside;
    inside = true;
    try {
        body(context);
    } catch (...) {
        inside = before;
        throw;
    }
    inside = before;
}
