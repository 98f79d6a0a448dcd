// Runs every case on every table of this CPU, then the threads and the memory under them. Exit code 1 where anything is wrong.
//   native [--no-fork] [NAME...]: all or the kernels named; "threads": the pool, without a fork for tools that cannot follow one
#include <sys/wait.h>

#include <stdexcept>
#include <thread>

#include "check.h"
#include "memory.h"

namespace {

constexpr index_t kEdges[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129};

void run(const Kernels& kernels, const Case& test, index_t n, index_t c, bool split) {
    Check check(kernels, test.kernel, n, c);
    for (const int threads : {1, 2, 3, 4, 8}) {
        if (!split && threads != 1 && threads != 3) continue;
        check.begin(threads);
        test.run(check);
    }
}

void require(bool ok, const char* what) {
    ++Check::comparisons;
    if (!ok && ++Check::failures <= 20) std::printf("FAILED threads: %s\n", what);
}

// Every chunk once, whatever the number of threads, while that number changes and regions follow one another.
void regions() {
    for (const int threads : {8, 1, 3, 2, 4, 8, 2}) {
        set_thread_limit(threads);
        for (int round = 0; round < 300; ++round) {
            std::vector<int> times(std::size_t(round % 41), 0);
            parallel_for(round % 41, [&](index_t i) {
                ++times[std::size_t(i)];
                require(thread_limit() == 1 || threads == 1 || round % 41 == 1, "a region in a chunk is serial");
            });
            require(std::count(times.begin(), times.end(), 1) == round % 41, "every chunk runs once");
        }
    }
}

void what_a_chunk_throws_comes_out() {
    set_thread_limit(4);
    for (int round = 0; round < 50; ++round) {
        bool caught = false;
        try {
            parallel_for(20, [&](index_t i) {
                if (i == round % 20) throw std::runtime_error("chunk");
            });
        } catch (const std::runtime_error& error) {
            caught = std::string(error.what()) == "chunk";
        }
        require(caught, "what a chunk throws comes out of its region");
    }
}

// Callers that run regions and take memory side by side: one of them has the workers, the others are serial; the bits are the same.
void callers_side_by_side(const Kernels& kernels) {
    set_thread_limit(3);
    const index_t count = 100000;
    std::vector<float> x(std::size_t(count), 0.0f);
    for (index_t i = 0; i < count; ++i) x[std::size_t(i)] = float(i % 1001) * 0.01f - 5;
    const double expected = kernels.sum_squares(x.data(), count);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&] {
            for (int round = 0; round < 100; ++round) {
                float* y = static_cast<float*>(pool_take(sizeof(float) * std::size_t(count >> (round % 3))));
                kernels.activation(x.data(), y, count >> (round % 3), kSilu);
                wrong += kernels.sum_squares(x.data(), count) != expected;
                pool_give(y);
            }
        });
    for (auto& caller : callers) caller.join();
    pool_trim();
    require(!wrong, "callers side by side get the bits of one alone");
    require(pool_stats().in_use == 0 && pool_stats().cached == 0, "the pool has everything back");
}

void a_forked_child_has_a_pool_of_its_own() {
    set_thread_limit(3);
    std::atomic<int> ran{0};
    parallel_for(30, [&](index_t) { ++ran; });
    const pid_t child = fork();
    if (child == 0) {
        parallel_for(30, [&](index_t) { ++ran; });
        _exit(ran == 60 ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    require(status == 0, "a region in a forked child");
    parallel_for(30, [&](index_t) { ++ran; });
    require(ran == 60, "a region after a fork");
}

}  // namespace

int main(int count, char** arguments) {
    const bool no_fork = count > 1 && !std::strcmp(arguments[1], "--no-fork");
    const std::vector<std::string> names(arguments + 1 + no_fork, arguments + count);
    const auto wanted = [&](const char* name) { return names.empty() || std::find(names.begin(), names.end(), name) != names.end(); };
    int tables;
    const Kernels* const* table = kernel_tables(&tables);
    for (int i = 0; i < tables; ++i) {
        std::printf("%s, %d floats a register\n", table[i]->name, table[i]->width);
        for (const Case& test : cases()) {
            if (!wanted(test.kernel)) continue;
            Check::worst = 0;
            const int before = Check::comparisons;
            if (test.own_sizes) {
                run(*table[i], test, 0, 0, true);
            } else {
                for (const index_t c : kEdges)
                    for (const index_t n : {0, 1, 5}) run(*table[i], test, n, c, false);
                run(*table[i], test, 331, 301, true);
            }
            const int compared = Check::comparisons - before;
            std::printf("  %-16s %5d comparisons, largest error %.2f of its bound\n", test.kernel, compared, Check::worst);
        }
    }
    if (wanted("threads")) {
        regions();
        what_a_chunk_throws_comes_out();
        callers_side_by_side(*table[0]);
        if (!no_fork) a_forked_child_has_a_pool_of_its_own();
    }
    std::printf("%d comparisons, %d failures\n", Check::comparisons.load(), Check::failures.load());
    return Check::failures != 0 || Check::comparisons == 0;
}
