// The pool that output buffers come from: a training step asks the system for memory once, the next steps reuse it.
#pragma once
#include <cstddef>

void* pool_take(std::size_t bytes);            // 64-byte aligned, not cleared; null where there is no memory
void pool_give(void* block) noexcept;          // block from pool_take
void pool_trim() noexcept;                     // gives cached blocks back to the system
struct PoolStats { std::size_t in_use, cached, peak, system_calls; };
PoolStats pool_stats();

// The calling thread's `slot`-th scratch, at least `bytes`, 64-byte aligned; reused by the next call, its content is not kept.
// Throws std::bad_alloc. Slots: 0 matmul's packed A, 1 matmul's packed B, 2 to 7 for the other kernels.
void* scratch(int slot, std::size_t bytes);
