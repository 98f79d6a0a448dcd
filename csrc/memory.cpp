#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

constexpr std::size_t kHuge = std::size_t(2) << 20;

// Rounded up to sixteenths of a power of two: at most 6.25 % lost, and ragged sizes meet again.
std::size_t size_class(std::size_t bytes) {
    if (bytes <= 512) return 512;
    const int top = 63 - __builtin_clzll(bytes - 1);
    const std::size_t step = std::size_t(1) << (top - 4);
    return (bytes + step - 1) / step * step;
}

void* system_take(std::size_t bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, bytes >= kHuge ? kHuge : 64, bytes) != 0) return nullptr;
#ifdef __linux__
    if (bytes >= kHuge) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

struct Pool {
    std::mutex mutex;
    std::map<std::size_t, std::vector<void*>> free;  // size class -> blocks
    std::unordered_map<void*, std::size_t> taken;
    PoolStats stats{0, 0, 0, 0};
    std::size_t dropped = 0;

    // malloc keeps what lies between blocks in use, and a run whose rows have ever other lengths took twice its memory: so now and then it
    // is told to return the pages.
    void drop_largest() {
        auto last = std::prev(free.end());
        std::free(last->second.back());
        stats.cached -= last->first;
        dropped += last->first;
#ifdef __GLIBC__
        if (dropped > stats.peak / 8) {
            malloc_trim(0);
            dropped = 0;
        }
#endif
        last->second.pop_back();
        if (last->second.empty()) free.erase(last);
    }
};

Pool& pool() {
    static Pool* p = new Pool;  // never destroyed: arrays may outlive static destructors
    return *p;
}

struct Scratch {
    void* block = nullptr;
    std::size_t bytes = 0;
    ~Scratch() { std::free(block); }
};
thread_local Scratch scratches[8];  // a thread's own: two Python threads may run kernels side by side

}  // namespace

void* pool_take(std::size_t bytes) {
    const std::size_t size = size_class(bytes);
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    p.stats.in_use += size;
    if (p.stats.in_use > p.stats.peak) p.stats.peak = p.stats.in_use;
    void* block = nullptr;
    auto found = p.free.lower_bound(size);
    if (found != p.free.end() && found->first <= size + size / 2) {  // a gradient of 3.5 MB takes an activation's 4.7
        block = found->second.back();
        found->second.pop_back();
        p.stats.in_use += found->first - size;
        p.stats.cached -= found->first;
        p.taken[block] = found->first;
        if (found->second.empty()) p.free.erase(found);
        return block;
    }
    while (p.stats.cached && p.stats.in_use + p.stats.cached > p.stats.peak + p.stats.peak / 4) p.drop_largest();
    block = system_take(size);
    while (!block && p.stats.cached) {
        p.drop_largest();
        block = system_take(size);
    }
    ++p.stats.system_calls;
    if (!block) {
        p.stats.in_use -= size;
        return nullptr;
    }
    p.taken[block] = size;
    return block;
}

void pool_give(void* block) noexcept {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    const auto found = p.taken.find(block);
    const std::size_t size = found->second;
    p.taken.erase(found);
    p.stats.in_use -= size;
    p.stats.cached += size;
    p.free[size].push_back(block);
}

void pool_trim() noexcept {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    while (p.stats.cached) p.drop_largest();
}

PoolStats pool_stats() {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    return p.stats;
}

void* scratch(int slot, std::size_t bytes) {
    Scratch& s = scratches[slot];
    if (s.bytes < bytes) {
        std::free(s.block);
        s.block = system_take(size_class(bytes));
        s.bytes = s.block ? size_class(bytes) : 0;
        if (!s.block) throw std::bad_alloc();
    }
    return s.block;
}
