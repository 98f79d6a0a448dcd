// Every kernel, compiled for the ISA whose file includes this inside its target region and anonymous namespace.
#include "simd.h"

#include "generic/matmul.h"

constexpr Kernels table = [] {
    Kernels t{};
    t.name = PYLLM_ISA_NAME;
    t.width = W;
    t.matmul = matmul;
    t.fma_peak = fma_peak;
    return t;
}();
