#if defined(__x86_64__)
#include "isa/region.h"

#define PYLLM_WIDTH 8
#define PYLLM_ISA_NAME "avx2"
TARGET_BEGIN("avx2,fma,f16c,prfchw")
namespace {
#include "generic/table.h"
}
TARGET_END
const Kernels* table_avx2() { return &table; }
#endif
