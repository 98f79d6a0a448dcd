// Which tables this CPU can run. Asked when the module is imported, never by a static initialiser.
#include "kernels.h"

const Kernels* table_baseline();
#if defined(__x86_64__)
const Kernels* table_avx2();
const Kernels* table_avx512();
const Kernels* table_avx512_bf16();
#endif

const Kernels* const* kernel_tables(int* count) {
    static const Kernels* tables[4];
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();  // the answers below include the system's support of the registers
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) tables[n++] = table_avx512_bf16();
        tables[n++] = table_avx512();
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables[n++] = table_avx2();
#endif
    tables[n++] = table_baseline();
    *count = n;
    return tables;
}
