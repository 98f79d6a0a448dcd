// Every kernel, compiled for the ISA whose file includes this inside its target region and anonymous namespace.
#include "simd.h"

#include "generic/matmul.h"

#include "generic/attention.h"
#include "generic/attention_vjp.h"
#include "generic/rope.h"

constexpr Kernels table = [] {
    Kernels t{};
    t.name = PYLLM_ISA_NAME;
    t.width = W;
    t.matmul = matmul;
    t.fma_peak = fma_peak;
    t.attention = attention;
    t.attention_vjp = attention_vjp;
    t.rope = rope;
    return t;
}();
