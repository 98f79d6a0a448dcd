#if defined(__x86_64__)
#include "isa/region.h"

#define PYLLM_WIDTH 16
#define PYLLM_ISA_NAME "avx512"
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prfchw")
namespace {
#include "generic/table.h"
}
TARGET_END
const Kernels* table_avx512() { return &table; }
#endif
