// Every kernel, compiled for the ISA whose file includes this inside its target region and anonymous namespace.
#include "simd.h"

#include "generic/elementwise.h"
#include "generic/matmul.h"
#include "generic/quant.h"
#include "generic/norm.h"
#include "generic/softmax.h"
#include "generic/embed.h"
#include "generic/optim.h"
#include "generic/sample.h"

#include "generic/attention_tile.h"
#include "generic/attention.h"
#include "generic/attention_vjp.h"
#include "generic/head.h"
#include "generic/rope.h"

constexpr Kernels table = [] {
    Kernels t{};
    t.name = PYLLM_ISA_NAME;
    t.width = W;
    t.matmul = [](const MatmulArgs& g) { g.bf16 ? matmul_of<BFloat16>(g) : matmul_of<Float32>(g); };
    t.fma_peak = [](index_t rounds, float* sink, bool bf16) {
        return bf16 ? peak_of<BFloat16>(rounds, sink) : peak_of<Float32>(rounds, sink);
    };
    t.packed_linear = packed_linear;
    t.packed_rows = packed_rows;
    t.int8_peak = int8_peak;
    t.attention = [](const AttentionArgs& g) { g.bf16 ? attention_of<true>(g) : attention_of<false>(g); };
    t.attention_vjp = [](const AttentionArgs& g) { g.bf16 ? attention_vjp_of<true>(g) : attention_vjp_of<false>(g); };
    t.rope = rope;
    t.activation = activation;
    t.activation_vjp = activation_vjp;
    t.glu = glu;
    t.glu_vjp = glu_vjp;
    t.add = add;
    t.dropout = dropout;
    t.column_sum = column_sum;
    t.layer_norm = layer_norm;
    t.layer_norm_vjp = layer_norm_vjp;
    t.rms_norm = rms_norm;
    t.rms_norm_vjp = rms_norm_vjp;
    t.softmax = softmax;
    t.softmax_vjp = softmax_vjp;
    t.log_softmax = log_softmax;
    t.log_softmax_vjp = log_softmax_vjp;
    t.cross_entropy = cross_entropy;
    t.linear_cross_entropy = [](const HeadArgs& g) {
        g.bf16 ? linear_cross_entropy_of<BFloat16>(g) : linear_cross_entropy_of<Float32>(g);
    };
    t.embedding = embedding;
    t.embedding_vjp = embedding_vjp;
    t.sum_squares = sum_squares;
    t.adamw = adamw;
    t.sample = sample;
    return t;
}();
