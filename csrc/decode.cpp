// Bound: the weights' bytes, read once a call. So a product of few rows is cut into runs of columns that all threads take, and products
// of the same input share a region; what lies between products takes microseconds and stays on one thread, as its kernels decide.
#include "decode.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "memory.h"
#include "parallel.h"

namespace {

constexpr index_t FEW = 8;       // rows up to which a product is bound by its weights
constexpr index_t UNIT = 16;     // columns that a product of few rows takes at a time
constexpr index_t TINY = 32768;  // weights that one thread reads before another one would have come

struct Buffer {  // floats from the pool
    float* data;
    explicit Buffer(index_t n) : data(static_cast<float*>(pool_take(std::size_t(n) * sizeof(float)))) {
        if (!data) throw std::bad_alloc();
    }
    ~Buffer() { pool_give(data); }
    Buffer(const Buffer&) = delete;
    operator float*() const { return data; }
};

Piece bytes_of(const Weight& w) {
    static constexpr std::size_t bits[] = {16, 8, 4, 4};  // of a packed weight
    const std::size_t weights = std::size_t(w.rows) * w.cols;
    return w.data ? Piece{w.data, 4 * weights} : Piece{w.packed.words, weights / 8 * bits[w.packed.format]};
}

void read_ahead_of(const Block& b) {  // the first that a block reads
    b.projections == 1 ? read_ahead({bytes_of(b.qkv[0])}) : read_ahead({bytes_of(b.qkv[0]), bytes_of(b.qkv[1]), bytes_of(b.qkv[2])});
}

struct Product {  // y = act(x @ weight.T + bias) + residual     x:(n, cols) y, residual:(n, rows)
    const Weight* weight;
    float* y;
    Activation act;
    const float* residual;  // not y; or null
};

// Columns [first, first + count) of a product.
void linear(const Kernels& k, const Product& p, const float* x, index_t n, index_t first, index_t count) {
    const Weight& w = *p.weight;
    MatmulArgs g{};
    g.a = x, g.a_row = w.cols, g.a_col = 1;
    g.b = w.data + first * w.cols, g.b_row = 1, g.b_col = w.cols;
    g.c = p.y + first, g.c_row = w.rows;
    g.m = n, g.n = count, g.k = w.cols, g.batch = 1;
    g.bias = w.bias ? w.bias + first : nullptr;
    g.residual = p.residual ? p.residual + first : nullptr;
    g.act = p.act;
    k.matmul(g);
}

// Products of the same x:(n, cols). The one place where formats part.
void products(const Kernels& k, const float* x, index_t n, std::initializer_list<Product> list) {
    PackedArgs packed[3];
    index_t count = 0;
    for (const Product& p : list)
        if (const Weight& w = *p.weight; !w.data) {
            PackedArgs& g = packed[count++] = w.packed;
            g.x = x, g.m = n, g.y = p.y, g.bias = w.bias, g.residual = p.residual, g.act = p.act;
        }
    if (count) k.packed_linear(packed, count);
    if (n > FEW || count) {  // kernels that share out their own columns
        for (const Product& p : list)
            if (p.weight->data) linear(k, p, x, n, 0, p.weight->rows);
        return;
    }
    index_t units = 0, weights = 0;
    for (const Product& p : list) units += (p.weight->rows + UNIT - 1) / UNIT, weights += p.weight->rows * p.weight->cols;
    const index_t tasks = std::min(units, std::max<index_t>(16, units / 16));  // a task in sixteen is what the slowest thread may cost
    const auto run = [&](index_t task) {
        index_t first = task * units / tasks, last = (task + 1) * units / tasks;
        for (const Product& p : list) {
            const index_t own = (p.weight->rows + UNIT - 1) / UNIT, begin = std::max<index_t>(first, 0), end = std::min(last, own);
            if (begin < end) linear(k, p, x, n, begin * UNIT, std::min(end * UNIT, p.weight->rows) - begin * UNIT);
            first -= own, last -= own;
        }
    };
    if (weights > TINY) return parallel_runs(tasks, run);
    serially([&] {
        for (index_t task = 0; task < tasks; ++task) run(task);
    });
}

void norm(const Kernels& k, const Norm& w, const float* x, float* y, index_t rows, float* stat) {
    if (w.rms) return k.rms_norm(x, w.weight, y, stat, rows, w.size, w.eps);
    k.layer_norm(x, w.weight, w.bias, y, stat, stat + rows, rows, w.size, w.eps);
}

struct Rows {  // n rows of `width` floats, `step` apart
    const float* data;
    index_t n, width, step;
};

struct Step {
    const Kernels& k;
    const BlocksArgs& g;
    const Weight* behind;  // what is read behind the blocks, or null
    const index_t n = g.b * g.t;
    index_t wide = 0, inner = 0;  // the largest q + k + v and MLP of all blocks
    index_t stats = 0;

    Step(const Kernels& kernels, const BlocksArgs& args, const Weight* behind = nullptr) : k(kernels), g(args), behind(behind) {
        for (const Block* block = g.blocks; block < g.blocks + g.count; ++block) {
            const index_t width = (block->heads + 2 * block->kv_heads) * block->head_size;
            wide = std::max(wide, width);
            inner = std::max(inner, block->up.rows);
            stats = std::max(stats, block->heads * std::max<index_t>(1, block->head_size));
        }
    }

    // q or k, normed and rotated as the block wants -> dense rows in `spare` or where they were.
    Rows turned(const Block& block, const Norm& w, Rows x, const int32_t* positions, float* spare, float* stat) {
        if (w.weight) {
            if (x.step != x.width) {
                for (index_t i = 0; i < n; ++i) std::memcpy(spare + i * x.width, x.data + i * x.step, x.width * sizeof(float));
                x.data = spare;
            }
            norm(k, w, x.data, spare, n * x.width / w.size, stat);
            x = {spare, n, x.width, x.width};
        }
        if (block.table >= 0) {
            const RotaryTable& t = g.tables[block.table];
            float* to = x.data == spare ? spare + n * x.width : spare;
            k.rope(x.data, to, t.cos, t.sin, positions, n, x.width / block.head_size, block.head_size, t.rotary, x.step, block.interleaved,
                   false);
            x = {to, n, x.width, x.width};
        }
        return x;
    }

    void append(const Rows& x, float* to, const Store& store, index_t d) {
        for (index_t i = 0; i < n; ++i) {
            const index_t row = i / g.t;
            float* first = to + row * store.batch + (g.lengths[row] + i % g.t) * d;
            for (index_t h = 0; h < x.width / d; ++h) std::memcpy(first + h * store.head, x.data + i * x.step + h * d, d * sizeof(float));
        }
    }

    void run() {
        Buffer normed(n * g.c), middle(n * g.c), qkv(n * wide), heads(n * wide), spare_q(2 * n * wide), spare_k(2 * n * wide);
        Buffer stat(2 * n * std::max<index_t>(stats, 1)), up(n * inner), gated(n * inner), place(n);
        int32_t* positions = reinterpret_cast<int32_t*>(place.data);
        for (index_t i = 0; i < n; ++i) positions[i] = int32_t(g.lengths[i / g.t] + i % g.t);
        const float* x = g.x;
        for (index_t i = 0; i < g.count; ++i, x = g.y) {
            const Block& block = g.blocks[i];
            norm(k, block.attention_norm, x, normed, n, stat);
            read_ahead({bytes_of(block.out)});
            attention(block, g.stores[i], normed, qkv, heads, positions, spare_q, spare_k, stat);
            read_ahead({bytes_of(block.gate), bytes_of(block.up)});
            products(k, heads, n, {{&block.out, middle, kNone, x}});
            norm(k, block.mlp_norm, middle, normed, n, stat);
            read_ahead({bytes_of(block.down)});
            if (block.gate.rows) {
                products(k, normed, n, {{&block.gate, gated, kNone, nullptr}, {&block.up, up, kNone, nullptr}});
                k.glu(gated, up, up, n * block.up.rows, block.act);
            } else {
                products(k, normed, n, {{&block.up, up, block.act, nullptr}});
            }
            if (i + 1 < g.count) read_ahead_of(g.blocks[i + 1]);
            else if (behind) read_ahead({bytes_of(*behind)});
            products(k, up, n, {{&block.down, g.y, kNone, middle}});
        }
    }

    // x:(n, C) -> out:(n, heads * head_size)
    void attention(const Block& block, const Store& store, const float* x, float* qkv, float* out, const int32_t* positions, float* spare_q,
                   float* spare_k, float* lse) {
        const index_t d = block.head_size, wq = block.heads * d, wk = block.kv_heads * d;
        const bool fused = block.projections == 1;
        const index_t step = wq + 2 * wk;
        float *kp = fused ? qkv + wq : qkv + n * wq, *vp = fused ? kp + wk : kp + n * wk;
        if (fused)
            products(k, x, n, {{&block.qkv[0], qkv, kNone, nullptr}});
        else
            products(k, x, n, {{&block.qkv[0], qkv, kNone, nullptr}, {&block.qkv[1], kp, kNone, nullptr},
                               {&block.qkv[2], vp, kNone, nullptr}});
        const Rows q = turned(block, block.q_norm, {qkv, n, wq, fused ? step : wq}, positions, spare_q, lse);
        append(turned(block, block.k_norm, {kp, n, wk, fused ? step : wk}, positions, spare_k, lse), store.keys, store, d);
        append({vp, n, wk, fused ? step : wk}, store.values, store, d);
        AttentionArgs a{};
        a.q = q.data, a.q_row = q.step, a.q_batch = g.t * q.step;
        a.k = store.keys, a.v = store.values;
        a.k_row = a.v_row = d, a.k_head = a.v_head = store.head, a.k_batch = a.v_batch = store.batch;
        a.out = out, a.lse = lse, a.starts = g.lengths;
        a.b = g.b, a.tq = g.t, a.h = block.heads, a.hkv = block.kv_heads, a.d = d;
        for (index_t b = 0; b < g.b; ++b) a.tk = std::max<index_t>(a.tk, g.lengths[b] + g.t);
        a.window = block.window, a.scale = block.scale, a.causal = true;
        k.attention(a);
    }
};

}  // namespace

void run_blocks(const Kernels& kernels, const BlocksArgs& args) { Step(kernels, args).run(); }

static void rows_of(const Kernels& k, const Weight& table, const int32_t* ids, float* y, index_t n) {
    if (table.data) return k.embedding(table.data, ids, y, n, table.cols);
    PackedArgs rows = table.packed;
    rows.y = y;
    k.packed_rows(rows, ids, n);
}

void run_token(const Kernels& k, BlocksArgs g, const Ends& ends, const int32_t* ids, float* hidden, float* logits) {
    const Buffer x(g.b * g.c), y(g.b * g.c), stat(2 * g.b), place(g.b);
    rows_of(k, ends.embedding, ids, x, g.b);
    if (ends.positions.rows) {
        int32_t* at = reinterpret_cast<int32_t*>(place.data);
        std::copy_n(g.lengths, g.b, at);
        rows_of(k, ends.positions, at, y, g.b);
        k.add(x, y, x, g.b * g.c);
    }
    g.x = x, g.y = y;
    Step(k, g, &ends.head).run();
    norm(k, ends.norm, y, hidden, g.b, stat);
    read_ahead_of(*g.blocks);
    products(k, hidden, g.b, {{&ends.head, logits, kNone, nullptr}});
}
