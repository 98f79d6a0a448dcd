// The only way to threads: fixed chunks, handed out in any order to any thread, so that a result never depends on how many there are.
#pragma once
#include <initializer_list>

#include "kernels.h"

int thread_limit();                                         // threads a region may use; 1 inside of one
void set_thread_limit(int n);                               // n >= 1
int default_thread_limit();                                 // min(affinity, cgroup quota)
void run_chunks(index_t chunks, void (*body)(void*, index_t chunk), void* context);

struct Piece {
    const void* data;
    std::size_t bytes;
};

// Memory in which the next region's parallel_runs will read: threads that wait fetch the beginning of theirs into their caches meanwhile.
void read_ahead(std::initializer_list<Piece> pieces);  // 3 at most

// f(chunk) for chunk in [0, chunks). What f throws (no memory for a scratch) ends the region and is thrown again behind it.
template <class F>
static inline void parallel_for(index_t chunks, const F& f) {
    if (chunks <= 1 || thread_limit() == 1) {
        for (index_t i = 0; i < chunks; ++i) f(i);
        return;
    }
    auto body = [](void* context, index_t chunk) { (*static_cast<const F*>(context))(chunk); };
    run_chunks(chunks, body, const_cast<F*>(&f));
}

void run_serially(void (*body)(void*), void* context);

// f() with every region in it on the calling thread alone: for work that is over before a worker would have come.
template <class F>
static inline void serially(const F& f) {
    run_serially([](void* context) { (*static_cast<const F*>(context))(); }, const_cast<F*>(&f));
}

// f(begin, end) over [0, n) in chunks of `grain`.
template <class F>
static inline void parallel_ranges(index_t n, index_t grain, const F& f) {
    parallel_for((n + grain - 1) / grain, [&](index_t chunk) {
        const index_t begin = chunk * grain;
        f(begin, begin + grain < n ? begin + grain : n);
    });
}

// f(i) for i in [0, n): a thread takes a run of neighbours of its own, so that it reads on where it left off, then helps with the others'.
template <class F>
static inline void parallel_runs(index_t n, const F& f) {
    constexpr index_t MOST = 64;
    struct alignas(64) Run {
        index_t next, end;
    } runs[MOST];
    const index_t limit = thread_limit(), threads = limit < MOST ? limit : MOST;
    for (index_t t = 0; t < threads; ++t) runs[t] = {t * n / threads, (t + 1) * n / threads};
    parallel_for(threads, [&](index_t thread) {
        for (index_t t = 0; t < threads; ++t) {
            Run& run = runs[(thread + t) % threads];
            for (index_t i; (i = __atomic_fetch_add(&run.next, 1, __ATOMIC_RELAXED)) < run.end;) f(i);
        }
    });
}
