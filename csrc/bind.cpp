// The boundary: exact dtype, C-contiguous, aligned arrays or an error that names the argument; the GIL released; one call
// through the table.
// Shapes are checked in pyllm/kernels/native.py, which also takes the outputs from `empty`.
#include <string>

#include "checks.h"
#include "kernels.h"
#include "memory.h"
#include "parallel.h"

const Kernels* active = nullptr;

PackedArgs packed_args(const py::tuple& w) {
    PackedArgs g{};
    g.format = PackedFormat(w[0].cast<int>());
    g.words = dense<uint32_t>(w[1], "packed: words");
    g.scales = dense<uint16_t>(w[2], "packed: scales", false, true);
    g.mins = dense<uint16_t>(w[3], "packed: mins", false, true);
    g.o = w[4].cast<index_t>(), g.i = w[5].cast<index_t>();
    return g;
}

namespace {

// ---- memory ----

// A float32 array over a pool block, which goes back when the array and its views are gone.
py::array empty(const py::tuple& shape) {
    index_t count = 1;
    std::vector<index_t> sizes;
    for (const auto& s : shape) {
        sizes.push_back(s.cast<index_t>());
        if (sizes.back() < 0 || __builtin_mul_overflow(count, std::max<index_t>(sizes.back(), 1), &count) || count > (index_t(1) << 58))
            throw py::value_error("empty: shape " + py::str(shape).cast<std::string>() + " is negative or too large");
    }
    for (const index_t s : sizes) count = s ? count : 0;
    void* block = pool_take(std::size_t(count) * sizeof(float));
    if (!block) {
        PyErr_Format(PyExc_MemoryError, "no memory for %zd bytes (array of shape %S)", Py_ssize_t(count) * 4, shape.ptr());
        throw py::error_already_set();
    }
    return py::array(py::dtype::of<float>(), sizes, static_cast<const float*>(block), py::capsule(block, pool_give));
}

// ---- matmul ----

// Strides of the last two axes of a view, either of which must be 1 (or the size along it at most 1).
void matmul(const py::array& a, const py::array& b, const py::array& c, bool ta, bool tb, const py::object& bias, int act,
            const py::object& z, const py::object& residual, bool accumulate, bool bf16) {
    MatmulArgs g{};
    g.a = in(a, "matmul: a");
    g.b = in(b, "matmul: b");
    g.c = out(c, "matmul: out");
    const int nd = int(c.ndim());
    g.m = c.shape(nd - 2);
    g.n = c.shape(nd - 1);
    g.k = a.shape(ta ? nd - 2 : nd - 1);
    g.a_row = ta ? 1 : g.k;
    g.a_col = ta ? g.m : 1;
    g.b_row = tb ? 1 : g.n;
    g.b_col = tb ? g.k : 1;
    g.c_row = g.n;
    g.batch = nd == 3 ? c.shape(0) : 1;
    g.a_batch = g.m * g.k;
    g.b_batch = g.k * g.n;
    g.c_batch = g.m * g.n;
    g.bias = in(bias, "matmul: bias", true);
    g.residual = in(residual, "matmul: residual", true);
    g.z = out(z, "matmul: z", true);
    g.act = Activation(act);
    g.accumulate = accumulate;
    g.bf16 = bf16;
    py::gil_scoped_release release;
    active->matmul(g);
}

// ---- packed weights ----

void packed_linear(const py::tuple& w, Object x, Object y, Object bias, int act, Object z, Object residual) {
    PackedArgs g = packed_args(w);
    g.x = in(x, "linear: x");
    g.y = out(y, "linear: out");
    g.m = g.o ? size(y) / g.o : 0;
    g.bias = in(bias, "linear: bias", true);
    g.residual = in(residual, "linear: residual", true);
    g.z = out(z, "linear: z", true);
    g.act = Activation(act);
    py::gil_scoped_release release;
    active->packed_linear(&g, 1);
}

// Blocks as they lie in files, row after row: float16 scale (and minimum), then words ^ flip -> 32 rows interleaved, see Packed.
void weave(const py::buffer& blocks, index_t rows, uint32_t flip, Object words, Object scales, Object mins) {
    constexpr index_t LANES = 32;
    const py::buffer_info from = blocks.request();
    const py::array shape = py::reinterpret_borrow<py::array>(words);
    uint32_t* to = dense<uint32_t>(words, "weave: words", true);
    uint16_t* heads[] = {dense<uint16_t>(scales, "weave: scales", true, true), dense<uint16_t>(mins, "weave: mins", true, true)};
    const index_t halves = (heads[0] != nullptr) + (heads[1] != nullptr);
    if (shape.ndim() != 4 || shape.shape(3) != LANES || (rows + LANES - 1) / LANES != shape.shape(0))
        throw py::value_error("weave: expected words of (O / 32, I / 32, words of a block, 32)");
    const index_t panels = shape.shape(0), per_row = shape.shape(1), each = shape.shape(2), bytes = 2 * halves + 4 * each;
    if (from.size * from.itemsize != rows * per_row * bytes) throw py::value_error("weave: the blocks do not fill the words");
    for (index_t h = 0; h < halves; ++h)
        if (size(h ? mins : scales) != panels * per_row * LANES) throw py::value_error("weave: expected scales of (O / 32, I / 32, 32)");
    const char* data = static_cast<const char*>(from.ptr);
    py::gil_scoped_release release;
    parallel_for(panels, [&](index_t panel) {
        for (index_t at = panel * per_row; at < (panel + 1) * per_row; ++at)
            for (index_t lane = 0; lane < LANES; ++lane) {
                const index_t row = panel * LANES + lane;
                const char* block = data + (row * per_row + at - panel * per_row) * bytes;
                uint16_t half = 0;
                for (index_t h = 0; h < halves; ++h) {
                    if (row < rows) std::memcpy(&half, block + 2 * h, 2);
                    heads[h][at * LANES + lane] = half;
                }
                for (index_t i = 0; i < each; ++i) {
                    uint32_t word = flip;
                    if (row < rows) std::memcpy(&word, block + 2 * halves + 4 * i, 4);
                    to[(at * each + i) * LANES + lane] = word ^ flip;
                }
            }
    });
}

void packed_rows(const py::tuple& w, Object ids, Object y) {
    PackedArgs g = packed_args(w);
    const int32_t* p = dense<int32_t>(ids, "packed_rows: ids");
    const index_t n = size(ids);
    g.y = out(y, "packed_rows: out");
    py::gil_scoped_release release;
    active->packed_rows(g, p, n);
}

// ---- attention and positions ----

// (B, T, H, D) whose last axis is dense; the one before it too, unless `spread`. One to be read is copied where it has another layout.
struct Heads {
    float* data;
    index_t b, t, h, d, row, batch, head;
    Heads(const py::handle& object, const char* name, bool writeable = false, bool spread = false) {
        py::array a = checked<float>(object, name, writeable);
        if (a.ndim() != 4) throw py::type_error(std::string(name) + ": expected (B, T, H, D), got " + std::to_string(a.ndim()) + " axes");
        b = a.shape(0), t = a.shape(1), h = a.shape(2), d = a.shape(3);
        const bool whole = a.strides(0) % 4 == 0 && a.strides(1) % 4 == 0 && a.strides(2) % 4 == 0;
        if (a.size() && ((d > 1 && a.strides(3) != 4) || (h > 1 && !spread && a.strides(2) != 4 * d) || !whole)) {
            if (writeable) throw py::type_error(std::string(name) + ": expected its last " + (spread ? "axis" : "two axes") + " dense");
            a = copied(a);
        }
        data = const_cast<float*>(static_cast<const float*>(a.data()));
        batch = a.strides(0) / 4, row = a.strides(1) / 4, head = a.strides(2) / 4;
    }
};

AttentionArgs attention_args(const py::object& q, const py::object& k, const py::object& v, const py::object& out_, const py::object& lse,
                             const py::object& q_segments, const py::object& k_segments, const py::object& starts, const py::object& bias,
                             index_t window, float scale, bool causal, bool bf16, uint32_t drop, uint64_t key, bool forward) {
    const Heads qh(q, "attention: q"), kh(k, "attention: k", false, true), vh(v, "attention: v", false, true);
    AttentionArgs g{};
    g.q = qh.data, g.k = kh.data, g.v = vh.data;
    g.b = qh.b, g.tq = qh.t, g.tk = kh.t, g.h = qh.h, g.hkv = kh.h, g.d = qh.d;
    g.q_row = qh.row, g.k_row = kh.row, g.v_row = vh.row;
    g.q_batch = qh.batch, g.k_batch = kh.batch, g.v_batch = vh.batch;
    g.k_head = kh.head, g.v_head = vh.head;
    g.out = dense<float>(out_, "attention: out", forward);
    g.lse = dense<float>(lse, "attention: lse", forward);
    g.q_segments = dense<int32_t>(q_segments, "attention: segments", false, true);
    g.k_segments = dense<int32_t>(k_segments, "attention: segments", false, true);
    g.starts = dense<int64_t>(starts, "attention: starts", false, true);
    g.bias = in(bias, "attention: bias", true);
    if (g.bias) {
        const py::array a = py::reinterpret_borrow<py::array>(bias);
        g.bias_q = g.tk;
        g.bias_h = a.shape(1) == 1 ? 0 : g.tq * g.tk;
        g.bias_b = a.shape(0) == 1 ? 0 : a.shape(1) * g.tq * g.tk;
    }
    g.window = window, g.scale = scale, g.causal = causal, g.bf16 = bf16, g.drop = drop, g.key = key;
    return g;
}

void attention(const py::object& q, const py::object& k, const py::object& v, const py::object& out_, const py::object& lse,
               const py::object& q_segments, const py::object& k_segments, const py::object& starts, const py::object& bias, index_t window,
               float scale, bool causal, bool bf16, uint32_t drop, uint64_t key) {
    AttentionArgs g = attention_args(q, k, v, out_, lse, q_segments, k_segments, starts, bias, window, scale, causal, bf16, drop,
                                     key, true);
    py::gil_scoped_release release;
    active->attention(g);
}

void attention_vjp(const py::object& dout, const py::object& q, const py::object& k, const py::object& v, const py::object& out_,
                   const py::object& lse, const py::object& q_segments, const py::object& k_segments, const py::object& starts,
                   const py::object& bias, index_t window, float scale, bool causal, bool bf16, uint32_t drop, uint64_t key,
                   const py::object& dq, const py::object& dk, const py::object& dv, const py::object& dbias) {
    AttentionArgs g = attention_args(q, k, v, out_, lse, q_segments, k_segments, starts, bias, window, scale, causal, bf16, drop,
                                     key, false);
    g.dout = in(dout, "attention_vjp: dout");
    const Heads dqh(dq, "attention_vjp: dq", true), dkh(dk, "attention_vjp: dk", true), dvh(dv, "attention_vjp: dv", true);
    g.dq = dqh.data, g.dk = dkh.data, g.dv = dvh.data;
    g.dq_row = dqh.row, g.dk_row = dkh.row, g.dv_row = dvh.row;
    g.dq_batch = dqh.batch, g.dk_batch = dkh.batch, g.dv_batch = dvh.batch;
    g.dbias = out(dbias, "attention_vjp: dbias", true);
    py::gil_scoped_release release;
    active->attention_vjp(g);
}

void rope(const py::object& x, const py::object& y, const py::object& cos, const py::object& sin, const py::object& positions,
          index_t rotary, bool interleaved, bool inverse) {
    const Heads h(x, "rope: x");
    float* to = out(y, "rope: out");
    const float *c = in(cos, "rope: cos"), *s = in(sin, "rope: sin");
    const int32_t* p = dense<int32_t>(positions, "rope: positions");
    py::gil_scoped_release release;
    active->rope(h.data, to, c, s, p, h.b * h.t, h.h, h.d, rotary, h.row, interleaved, inverse);
}

// ---- element by element ----

void activation(Object x, Object y, int act) {
    const float* from = in(x, "activation: x");
    float* to = out(y, "activation: out");
    const index_t n = size(y);
    py::gil_scoped_release release;
    active->activation(from, to, n, Activation(act));
}

void activation_vjp(Object dy, Object x, Object dx, int act) {
    const float *d = in(dy, "activation_vjp: dy"), *from = in(x, "activation_vjp: x");
    float* to = out(dx, "activation_vjp: dx");
    const index_t n = size(dx);
    py::gil_scoped_release release;
    active->activation_vjp(d, from, to, n, Activation(act));
}

void glu(Object gate, Object up, Object y, int act) {
    const float *g = in(gate, "glu: gate"), *u = in(up, "glu: up");
    float* to = out(y, "glu: out");
    const index_t n = size(y);
    py::gil_scoped_release release;
    active->glu(g, u, to, n, Activation(act));
}

void glu_vjp(Object dy, Object gate, Object up, Object dgate, Object dup, int act) {
    const float *d = in(dy, "glu_vjp: dy"), *g = in(gate, "glu_vjp: gate"), *u = in(up, "glu_vjp: up");
    float *dg = out(dgate, "glu_vjp: dgate"), *du = out(dup, "glu_vjp: dup");
    const index_t n = size(dy);
    py::gil_scoped_release release;
    active->glu_vjp(d, g, u, dg, du, n, Activation(act));
}

void add(Object a, Object b, Object y) {
    const float *pa = in(a, "add: a"), *pb = in(b, "add: b");
    float* to = out(y, "add: out");
    const index_t n = size(y);
    py::gil_scoped_release release;
    active->add(pa, pb, to, n);
}

void dropout(Object x, Object y, uint32_t threshold, uint64_t key, float scale) {
    const float* from = in(x, "dropout: x");
    float* to = out(y, "dropout: out");
    const index_t n = size(y);
    py::gil_scoped_release release;
    active->dropout(from, to, n, threshold, key, scale);
}

// ---- norms ----

void column_sum(Object x, Object y) {
    const float* from = in(x, "column_sum: x");
    float* to = out(y, "column_sum: out");
    const index_t c = size(y), n = c ? size(x) / c : 0;
    py::gil_scoped_release release;
    active->column_sum(from, to, n, c);
}

void layer_norm(Object x, Object w, Object b, Object y, Object mean, Object rstd, float eps) {
    const float *from = in(x, "layer_norm: x"), *pw = in(w, "layer_norm: w"), *pb = in(b, "layer_norm: b", true);
    float *to = out(y, "layer_norm: out"), *m = out(mean, "layer_norm: mean"), *r = out(rstd, "layer_norm: rstd");
    const index_t n = size(rstd), c = size(w);
    py::gil_scoped_release release;
    active->layer_norm(from, pw, pb, to, m, r, n, c, eps);
}

void layer_norm_vjp(Object dy, Object x, Object w, Object mean, Object rstd, Object dx, Object dw, Object db) {
    const float *d = in(dy, "layer_norm_vjp: dy"), *from = in(x, "layer_norm_vjp: x"), *pw = in(w, "layer_norm_vjp: w");
    const float *m = in(mean, "layer_norm_vjp: mean"), *r = in(rstd, "layer_norm_vjp: rstd");
    float *to = out(dx, "layer_norm_vjp: dx"), *pdw = out(dw, "layer_norm_vjp: dw", true), *pdb = out(db, "layer_norm_vjp: db", true);
    const index_t n = size(rstd), c = size(w);
    py::gil_scoped_release release;
    active->layer_norm_vjp(d, from, pw, m, r, to, pdw, pdb, n, c);
}

void rms_norm(Object x, Object w, Object y, Object rstd, float eps) {
    const float *from = in(x, "rms_norm: x"), *pw = in(w, "rms_norm: w");
    float *to = out(y, "rms_norm: out"), *r = out(rstd, "rms_norm: rstd");
    const index_t n = size(rstd), c = size(w);
    py::gil_scoped_release release;
    active->rms_norm(from, pw, to, r, n, c, eps);
}

void rms_norm_vjp(Object dy, Object x, Object w, Object rstd, Object dx, Object dw) {
    const float *d = in(dy, "rms_norm_vjp: dy"), *from = in(x, "rms_norm_vjp: x"), *pw = in(w, "rms_norm_vjp: w");
    const float* r = in(rstd, "rms_norm_vjp: rstd");
    float *to = out(dx, "rms_norm_vjp: dx"), *pdw = out(dw, "rms_norm_vjp: dw", true);
    const index_t n = size(rstd), c = size(w);
    py::gil_scoped_release release;
    active->rms_norm_vjp(d, from, pw, r, to, pdw, n, c);
}

// ---- softmax and losses: rows of v ----

void softmax(Object x, Object y, index_t v, bool log) {
    const float* from = in(x, log ? "log_softmax: x" : "softmax: x");
    float* to = out(y, "softmax: out");
    const index_t n = v ? size(y) / v : 0;
    py::gil_scoped_release release;
    (log ? active->log_softmax : active->softmax)(from, to, n, v);
}

void softmax_vjp(Object dy, Object y, Object dx, index_t v, bool log) {
    const float *d = in(dy, log ? "log_softmax_vjp: dy" : "softmax_vjp: dy"), *py_ = in(y, log ? "log_softmax_vjp: y" : "softmax_vjp: y");
    float* to = out(dx, "softmax_vjp: dx");
    const index_t n = v ? size(dx) / v : 0;
    py::gil_scoped_release release;
    (log ? active->log_softmax_vjp : active->softmax_vjp)(d, py_, to, n, v);
}

void cross_entropy(Object logits, Object targets, Object loss, index_t v, float label_smoothing, float z_loss, bool grad) {
    float *x = out(logits, "cross_entropy: logits"), *l = out(loss, "cross_entropy: loss");
    const int32_t* t = dense<int32_t>(targets, "cross_entropy: targets");
    const index_t n = size(loss);
    py::gil_scoped_release release;
    active->cross_entropy(x, t, l, n, v, label_smoothing, z_loss, grad);
}

void linear_cross_entropy(Object h, Object w, Object b, Object targets, Object loss, Object dh, Object dw, Object db,
                          float label_smoothing, float z_loss, index_t budget, bool bf16) {
    HeadArgs g{};
    g.h = in(h, "linear_cross_entropy: h"), g.w = in(w, "linear_cross_entropy: w"), g.b = in(b, "linear_cross_entropy: b", true);
    g.targets = dense<int32_t>(targets, "linear_cross_entropy: targets");
    g.loss = out(loss, "linear_cross_entropy: loss"), g.dh = out(dh, "linear_cross_entropy: dh", true);
    g.dw = out(dw, "linear_cross_entropy: dw", true), g.db = out(db, "linear_cross_entropy: db", true);
    const py::array a = py::reinterpret_borrow<py::array>(w);
    g.n = size(loss), g.v = a.shape(0), g.c = a.shape(1);
    g.label_smoothing = label_smoothing, g.z_loss = z_loss, g.budget = budget, g.bf16 = bf16;
    py::gil_scoped_release release;
    active->linear_cross_entropy(g);
}

// ---- embedding ----

// The flat index of the first id outside [low, high), or -1.
index_t first_outside(Object ids, int64_t low, int64_t high) {
    const int32_t* p = dense<int32_t>(ids, "ids");
    const index_t n = size(ids);
    for (index_t i = 0; i < n; ++i)
        if (p[i] < low || p[i] >= high) return i;
    return -1;
}

void embedding(Object w, Object ids, Object y, index_t c) {
    const float* table = in(w, "embedding: w");
    const int32_t* p = dense<int32_t>(ids, "embedding: ids");
    float* to = out(y, "embedding: out");
    const index_t n = size(ids);
    py::gil_scoped_release release;
    active->embedding(table, p, to, n, c);
}

void embedding_vjp(Object dy, Object ids, Object dw, index_t c, index_t rows, bool accumulate) {
    const float* d = in(dy, "embedding_vjp: dy");
    const int32_t* p = dense<int32_t>(ids, "embedding_vjp: ids");
    float* to = out(dw, "embedding_vjp: dw");
    const index_t n = size(ids);
    py::gil_scoped_release release;
    active->embedding_vjp(d, p, to, n, c, rows, accumulate);
}

// ---- optimizer ----

double sum_squares(Object x) {
    const float* from = in(x, "sum_squares: x");
    const index_t n = size(x);
    py::gil_scoped_release release;
    return active->sum_squares(from, n);
}

void adamw(Object p, Object g, Object m, Object v, double lr, double beta1, double beta2, double eps, double weight_decay,
           double correction1, double correction2, double scale) {
    const float* grad = in(g, "adamw: g");
    float *weight = out(p, "adamw: p"), *first = out(m, "adamw: m"), *second = out(v, "adamw: v");
    const index_t n = size(p);
    py::gil_scoped_release release;
    active->adamw(weight, grad, first, second, n, lr, beta1, beta2, eps, weight_decay, correction1, correction2, scale);
}

// ---- sampling ----

void sample(Object logits, Object uniform, Object ids, index_t v, double temperature, index_t top_k, double top_p, double min_p) {
    const float* x = in(logits, "sample: logits");
    const double* u = dense<double>(uniform, "sample: uniform");
    int32_t* to = dense<int32_t>(ids, "sample: out", true);
    const index_t n = size(ids);
    py::gil_scoped_release release;
    active->sample(x, u, to, n, v, temperature, top_k, top_p, min_p);
}

double fma_peak(index_t rounds, bool bf16) {
    std::vector<float> sink(thread_limit());
    py::gil_scoped_release release;
    return active->fma_peak(rounds, sink.data(), bf16) * double(sink.size());
}

double int8_peak(index_t rounds) {
    std::vector<float> sink(thread_limit());
    py::gil_scoped_release release;
    return active->int8_peak(rounds, sink.data()) * double(sink.size());
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
    int count;
    const Kernels* const* tables = kernel_tables(&count);
    active = tables[0];
    set_thread_limit(default_thread_limit());

    m.def("isas", [=] {
        py::list names;
        for (int i = 0; i < count; ++i) names.append(tables[i]->name);
        return names;
    });
    m.def("isa", [] { return active->name; });
    m.def("width", [] { return active->width; });
    m.def("use", [=](const std::string& name) {
        std::string known;
        for (int i = 0; i < count; ++i) {
            if (name == tables[i]->name) {
                active = tables[i];
                return;
            }
            known += std::string(i ? ", " : "") + tables[i]->name;
        }
        throw py::value_error("'" + name + "' is not available on this CPU; available: " + known);
    });
    m.def("threads", thread_limit);
    m.def("default_threads", default_thread_limit);
    m.def("set_threads", set_thread_limit);
    m.def("trim", pool_trim);
    m.def("pool", [] {
        const PoolStats s = pool_stats();
        return py::dict(py::arg("in_use") = s.in_use, py::arg("cached") = s.cached, py::arg("peak") = s.peak,
                        py::arg("system_calls") = s.system_calls);
    });
    m.def("empty", empty);
    m.def("matmul", matmul);
    m.def("packed_linear", packed_linear);
    m.def("packed_rows", packed_rows);
    m.def("weave", weave);
    m.def("attention", attention);
    m.def("attention_vjp", attention_vjp);
    m.def("rope", rope);
    m.def("activation", activation);
    m.def("activation_vjp", activation_vjp);
    m.def("glu", glu);
    m.def("glu_vjp", glu_vjp);
    m.def("add", add);
    m.def("dropout", dropout);
    m.def("column_sum", column_sum);
    m.def("layer_norm", layer_norm);
    m.def("layer_norm_vjp", layer_norm_vjp);
    m.def("rms_norm", rms_norm);
    m.def("rms_norm_vjp", rms_norm_vjp);
    m.def("softmax", softmax);
    m.def("softmax_vjp", softmax_vjp);
    m.def("cross_entropy", cross_entropy);
    m.def("linear_cross_entropy", linear_cross_entropy);
    m.def("first_outside", first_outside);
    m.def("embedding", embedding);
    m.def("embedding_vjp", embedding_vjp);
    m.def("sum_squares", sum_squares);
    m.def("adamw", adamw);
    m.def("sample", sample);
    m.def("fma_peak", fma_peak);
    m.def("int8_peak", int8_peak);
    bind_decode(m);
}
