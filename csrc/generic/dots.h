// The kernels that multiply bfloat16 or bytes, for the ISA with dot products of both; float32 goes to `table_avx512`, so that nothing is
// compiled twice.
#pragma GCC diagnostic ignored "-Wunused-function"  // of what the included headers hold for the other tables
#include "simd.h"

#include "generic/elementwise.h"
#include "generic/matmul.h"
#include "generic/quant.h"

#include "generic/attention_tile.h"
#include "generic/attention.h"
#include "generic/attention_vjp.h"
#include "generic/head.h"

static Kernels with_dots() {
    Kernels t = *table_avx512();
    t.name = "avx512_bf16";
    t.matmul = [](const MatmulArgs& g) { g.bf16 ? matmul_of<BFloat16>(g) : table_avx512()->matmul(g); };
    t.fma_peak = [](index_t rounds, float* sink, bool bf16) {
        return bf16 ? peak_of<BFloat16>(rounds, sink) : table_avx512()->fma_peak(rounds, sink, false);
    };
    t.packed_linear = packed_linear;
    t.int8_peak = int8_peak;
    t.attention = [](const AttentionArgs& g) { g.bf16 ? attention_of<true>(g) : table_avx512()->attention(g); };
    t.attention_vjp = [](const AttentionArgs& g) { g.bf16 ? attention_vjp_of<true>(g) : table_avx512()->attention_vjp(g); };
    t.linear_cross_entropy = [](const HeadArgs& g) {
        g.bf16 ? linear_cross_entropy_of<BFloat16>(g) : table_avx512()->linear_cross_entropy(g);
    };
    return t;
}
