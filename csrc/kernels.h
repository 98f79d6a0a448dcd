// The table that every ISA fills once: plain functions over pointers and sizes. Nothing here knows Python.
// All arrays are dense row-major float32 unless a stride stands beside them; strides and sizes count elements.
// Dimensions: B rows, T positions, C channels, H heads, D head size, V vocabulary; M, N, K of a matmul.
#pragma once
#include <cstddef>
#include <cstdint>

using index_t = std::ptrdiff_t;  // B * T * V passes 2^31

enum Activation : int { kNone = 0, kGeluTanh = 1, kGelu = 2, kSilu = 3, kRelu = 4 };

struct MatmulArgs {
    const float* a;  // op(A)[i, k] = a[i * a_row + k * a_col]
    const float* b;  // op(B)[k, j] = b[k * b_row + j * b_col]
    float* c;        // C[i, j] = c[i * c_row + j]
    index_t m, n, k;
    index_t a_row, a_col, b_row, b_col, c_row;
    index_t batch, a_batch, b_batch, c_batch;  // batch >= 1 equal products, their strides
    const float* bias;                         // (N,) or null
    const float* residual;                     // (M, N), rows c_row apart, or null; added after the activation
    float* z;                                  // (M, N), rows c_row apart: what went into the activation, or null
    Activation act;
    bool accumulate;  // C += instead of C =; then no bias, activation or residual
    bool bf16;        // operands rounded to bfloat16 while they are packed, sums in float32
};

enum PackedFormat : int { kBf16 = 0, kQ8_0 = 1, kQ4_0 = 2, kQ4_1 = 3 };

struct PackedArgs {
    PackedFormat format;
    const uint32_t* words;                // (O / 32, I / 32, words of a block, 32): 32 rows interleaved (see generic/quant.h)
    const uint16_t *scales, *mins;        // (O / 32, I / 32, 32) float16, null where the format has none; O and I rounded up
    index_t o, i, m;                      // the weight is (O, I)
    const float *x, *bias, *residual;     // (M, I), (O,) or null, (M, O) or null; added after the activation
    float *y, *z;                         // (M, O); what went into the activation, or null
    Activation act;
};

struct AttentionArgs {
    // rows of q, k, v, ... are `*_row` apart, batch entries `*_batch` apart, heads D apart, those of k and v `*_head` (so that they may
    // lie in a fused qkv or in a cache with more room, head by head)
    const float *q, *k, *v;  // q:(B, Tq, H, D) k, v:(B, Tk, Hkv, D)
    float* out;              // (B, Tq, H, D) dense
    float* lse;              // (B, H, Tq)
    index_t b, tq, tk, h, hkv, d;
    index_t q_row, k_row, v_row, q_batch, k_batch, v_batch, k_head, v_head;
    const int32_t *q_segments, *k_segments;  // (B, Tq), (B, Tk), or null
    const int64_t* starts;                   // (B,) key index of query 0, or null: tk - tq
    const float* bias;                       // strides below; null: none
    index_t bias_b, bias_h, bias_q;          // 0 where broadcast; keys are dense
    index_t window;                          // keys a query sees, itself included; 0: all
    float scale;
    bool causal;
    bool bf16;  // operands of the products rounded to bfloat16, sums in float32
    uint32_t drop;  // of the probabilities of query i of head h in entry b those are 0 whose word is below it, the others divided by
    uint64_t key;   // 1 - drop / 2^32; key j has word 2^32 ((b H + h) Tq + i) + j of `key`, see dropout; 0: none
    // vjp only
    const float* dout;     // (B, Tq, H, D) dense
    float *dq, *dk, *dv;   // laid out like q, k, v with the strides below; written, not added to
    index_t dq_row, dk_row, dv_row, dq_batch, dk_batch, dv_batch;
    float* dbias;          // laid out like bias, zero-filled by the caller, or null
};

struct HeadArgs {  // logits h w^T + b and their cross-entropy; gradients of the sum of the losses, null: not needed
    const float *h, *w, *b;  // (N, C), (V, C), (V,) or null
    const int32_t* targets;  // (N,), negative: ignored
    float *loss, *dh, *dw, *db;
    index_t n, c, v;
    float label_smoothing, z_loss;
    index_t budget;  // logits to hold at a time
    bool bf16;
};

struct Kernels {
    const char* name;
    int width;  // floats in a register

    void (*matmul)(const MatmulArgs&);
    double (*fma_peak)(index_t rounds, float* sink, bool bf16);  // a probe -> FLOP of each thread

    // ---- packed weights ----
    void (*packed_linear)(const PackedArgs* list, index_t count);              // y = act(x @ w.T + bias) + residual; all of the same x
    void (*packed_rows)(const PackedArgs&, const int32_t* ids, index_t n);     // y:(n, I) = rows of w
    double (*int8_peak)(index_t rounds, float* sink);                          // a probe -> operations a thread did, 2 a multiply-add

    // ---- element by element: n elements ----
    void (*activation)(const float* x, float* y, index_t n, Activation act);
    void (*activation_vjp)(const float* dy, const float* x, float* dx, index_t n, Activation act);
    void (*glu)(const float* gate, const float* up, float* y, index_t n, Activation act);
    void (*glu_vjp)(const float* dy, const float* gate, const float* up, float* dgate, float* dup, index_t n, Activation act);
    void (*column_sum)(const float* x, float* y, index_t n, index_t c);  // x:(n, c)
    void (*add)(const float* a, const float* b, float* y, index_t n);
    void (*dropout)(const float* x, float* y, index_t n, uint32_t threshold, uint64_t key, float scale);

    // ---- norms: n rows of c ----
    void (*layer_norm)(const float* x, const float* w, const float* b, float* y, float* mean, float* rstd, index_t n, index_t c, float eps);
    void (*layer_norm_vjp)(const float* dy, const float* x, const float* w, const float* mean, const float* rstd,
                           float* dx, float* dw, float* db, index_t n, index_t c);  // dw, db null: not needed
    void (*rms_norm)(const float* x, const float* w, float* y, float* rstd, index_t n, index_t c, float eps);
    void (*rms_norm_vjp)(const float* dy, const float* x, const float* w, const float* rstd, float* dx, float* dw, index_t n, index_t c);

    // ---- softmax and losses: n rows of v ----
    void (*softmax)(const float* x, float* y, index_t n, index_t v);
    void (*softmax_vjp)(const float* dy, const float* y, float* dx, index_t n, index_t v);
    void (*log_softmax)(const float* x, float* y, index_t n, index_t v);
    void (*log_softmax_vjp)(const float* dy, const float* y, float* dx, index_t n, index_t v);
    void (*cross_entropy)(float* logits, const int32_t* targets, float* loss, index_t n, index_t v, float label_smoothing, float z_loss,
                          bool grad);  // grad: logits become d(sum of loss)/dlogits
    void (*linear_cross_entropy)(const HeadArgs&);

    // ---- attention, positions, embedding ----
    void (*attention)(const AttentionArgs&);
    void (*attention_vjp)(const AttentionArgs&);
    void (*rope)(const float* x, float* y, const float* cos, const float* sin, const int32_t* positions, index_t rows, index_t heads,
                 index_t d, index_t rotary, index_t x_row, bool interleaved, bool inverse);
    // rope: rows = B * T; y dense; cos, sin:(P, rotary / 2)
    void (*embedding)(const float* w, const int32_t* ids, float* y, index_t n, index_t c);
    void (*embedding_vjp)(const float* dy, const int32_t* ids, float* dw, index_t n, index_t c, index_t rows, bool accumulate);
    // embedding_vjp: writes all of dw, or adds to it

    // ---- optimizer ----
    double (*sum_squares)(const float* x, index_t n);
    void (*adamw)(float* p, const float* g, float* m, float* v, index_t n, double lr, double beta1, double beta2, double eps,
                  double weight_decay, double correction1, double correction2, double scale);  // corrections: 1 - beta^step

    // ---- sampling ----
    void (*sample)(const float* logits, const double* uniform, int32_t* ids, index_t n, index_t v, double temperature, index_t top_k,
                   double top_p, double min_p);
};

// dispatch.cpp
const Kernels* const* kernel_tables(int* count);  // those this CPU can run, best first
