// All blocks of a decoder over its cache in one call. A Block says what a family's block is made of; decode.cpp composes kernels of the
// active table in the order, and so with the bits, of the same block in Python.
#pragma once
#include "kernels.h"

struct Weight {  // y = x @ w.T + bias
    const float* data;    // w:(rows, cols), or null: packed
    PackedArgs packed;    // of it what describes the weight
    const float* bias;    // (rows,) or null
    index_t rows, cols;   // what a layer gives, what it takes; 0: no such layer
};

struct Norm {
    const float *weight, *bias;  // (size,); no weight: no norm; no bias: null
    index_t size;
    float eps;
    bool rms;  // RMS norm, else layer norm
};

struct Block {  // x += out(attention(norm(x))); x += down(mlp(norm(x)))
    Norm attention_norm, mlp_norm;
    Norm q_norm, k_norm;  // over `size` neighbouring channels of q and k, before the rotation
    Weight qkv[3];        // q, k, v, or all three in the first
    int projections;      // 1 or 3
    Weight out, gate, up, down;  // mlp: down(act(up(x))), with a gate down(act(gate(x)) * up(x)); no gate: 0 rows
    Activation act;
    index_t heads, kv_heads, head_size, window;
    float scale;       // of the scores
    int table;         // index of its rotary table, -1: no rotation
    bool interleaved;  // rotates pairs (2i, 2i + 1) rather than (i, i + rotary / 2)
};

struct RotaryTable {
    const float *cos, *sin;  // (positions, rotary / 2)
    index_t rotary;
};

struct Store {  // a layer's keys and values: (B, Hkv, capacity, D), rows of the batch `batch` apart, heads `head` apart
    float *keys, *values;
    index_t batch, head;
};

struct BlocksArgs {
    const Block* blocks;
    const Store* stores;  // of each block; room for lengths[b] + t tokens
    index_t count;
    const RotaryTable* tables;
    const float* x;          // (B, T, C)
    float* y;                // (B, T, C)
    const int64_t* lengths;  // (B,) tokens in the stores; the new ones come behind them
    index_t b, t, c;
};

struct Ends {  // what stands before and behind the blocks: head(norm(blocks(embedding[id] + positions[at])))
    Weight embedding, head;  // (V, C)
    Weight positions;        // (P, C), or 0 rows
    Norm norm;
};

void run_blocks(const Kernels& kernels, const BlocksArgs& args);  // throws std::bad_alloc

// A token of each row, ids:(B,), through all of the model -> hidden:(B, C) as the head reads it, logits:(B, V). args: t = 1, no x, no y.
void run_token(const Kernels& kernels, BlocksArgs args, const Ends& ends, const int32_t* ids, float* hidden, float* logits);
