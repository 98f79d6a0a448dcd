// All of the library's OpenMP. Serial where the compiler has none.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace {

std::atomic<int> limit{1};
thread_local bool inside = false;  // in a chunk: a region within it runs serially
std::atomic<int> proven{1};  // as many threads as this were created once: libgomp ends the process where one is refused

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
// Creates n - 1 threads and ends them: how many of the n are to be had.
int prove(int n) {
    std::vector<std::thread> threads;
    std::atomic<bool> go{false};
    try {
        for (int i = 1; i < n; ++i) threads.emplace_back([&] { while (!go.load()) std::this_thread::yield(); });
    } catch (...) {
    }
    go = true;
    for (auto& t : threads) t.join();
    return int(threads.size()) + 1;
}

#ifdef __linux__
// A child forked while libgomp's team exists would wait for threads it does not have.
void before_fork() { omp_pause_resource_all(omp_pause_hard); }
const int registered = pthread_atfork(before_fork, nullptr, nullptr);
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
#ifndef _OPENMP
    n = 1;
#endif
    limit = n;
}

void run_chunks(index_t chunks, void (*body)(void*, index_t), void* context) {
#ifdef _OPENMP
    int threads = int(std::min<index_t>(thread_limit(), chunks));
    if (threads > proven.load(std::memory_order_relaxed)) {
        const int got = prove(threads);
        proven = std::max(proven.load(), got);
        if (got < threads) set_thread_limit(threads = got);
    }
    if (threads > 1) {
        std::atomic<index_t> next{0};
        std::exception_ptr error;
        std::atomic<bool> failed{false};
#pragma omp parallel num_threads(threads)
        {
            inside = true;
            try {
                for (index_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) body(context, i);
            } catch (...) {
                next = chunks;
                if (!failed.exchange(true)) error = std::current_exception();
            }
            inside = false;
        }
        if (error) std::rethrow_exception(error);
        return;
    }
#endif
    for (index_t i = 0; i < chunks; ++i) body(context, i);
}
