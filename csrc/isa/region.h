// What an ISA file includes first, at the baseline: no library function may be compiled for more than that,
// since the linker keeps one copy for all.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "memory.h"
#include "parallel.h"

#define PYLLM_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define TARGET_BEGIN(features) PYLLM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(features) _Pragma("GCC push_options") PYLLM_PRAGMA(GCC target(features))
#define TARGET_END _Pragma("GCC pop_options")
#endif
