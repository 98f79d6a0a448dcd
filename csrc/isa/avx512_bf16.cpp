// AVX-512 with dot products of bfloat16 and int8 pairs: Zen 4, Sapphire Rapids and later. What takes no such product is avx512's.
#if defined(__x86_64__)
#include "isa/region.h"

const Kernels* table_avx512();

#define PYLLM_WIDTH 16
#define PYLLM_DOT 1
TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw")
namespace {
#include "generic/dots.h"
Kernels table;
}
TARGET_END
const Kernels* table_avx512_bf16() {
    table = with_dots();
    return &table;
}
#endif
