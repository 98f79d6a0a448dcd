// What every CPU of the architecture has: SSE2 on x86-64, NEON on AArch64.
#include "isa/region.h"

#define PYLLM_WIDTH 4
#define PYLLM_ISA_NAME "baseline"
namespace {
#include "generic/table.h"
}
const Kernels* table_baseline() { return &table; }
