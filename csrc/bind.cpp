// The boundary: exact dtype, C-contiguous, aligned arrays or an error that names the argument; the GIL released; one call through the table.
// Shapes are checked in pyllm/kernels/native.py, which also takes the outputs from `empty`.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "kernels.h"
#include "memory.h"
#include "parallel.h"

namespace py = pybind11;

namespace {

const Kernels* active = nullptr;

// ---- checks ----

template <class T> constexpr const char* kTypeName = "?";
template <> constexpr const char* kTypeName<float> = "float32";
template <> constexpr const char* kTypeName<double> = "float64";
template <> constexpr const char* kTypeName<int32_t> = "int32";
template <> constexpr const char* kTypeName<int64_t> = "int64";

template <class T>
py::array checked(const py::handle& object, const char* name, bool writeable) {
    const auto fail = [&](const std::string& what) {
        throw py::type_error(std::string(name) + ": expected a C-contiguous, aligned " + kTypeName<T> + " array" +
                             (writeable ? " that can be written" : "") + ", got " + what);
    };
    if (!py::isinstance<py::array>(object)) fail(py::str(py::type::of(object)).cast<std::string>());
    py::array a = py::reinterpret_borrow<py::array>(object);
    if (!py::dtype::of<T>().equal(a.dtype())) fail(py::str(py::object(a.dtype())).cast<std::string>());
    if (reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T)) fail("a misaligned one");
    if (writeable && !a.writeable()) fail("a read-only one");
    return a;
}

// A dense array, or None where `optional`.
template <class T>
T* dense(const py::handle& object, const char* name, bool writeable = false, bool optional = false) {
    if (optional && object.is_none()) return nullptr;
    py::array a = checked<T>(object, name, writeable);
    if (!(a.flags() & py::array::c_style)) throw py::type_error(std::string(name) + ": expected a C-contiguous array, got a strided view; np.ascontiguousarray makes a copy");
    return const_cast<T*>(static_cast<const T*>(a.data()));
}
const float* in(const py::handle& o, const char* name, bool optional = false) { return dense<float>(o, name, false, optional); }
float* out(const py::handle& o, const char* name, bool optional = false) { return dense<float>(o, name, true, optional); }

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
            const py::object& z, const py::object& residual, bool accumulate) {
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
    py::gil_scoped_release release;
    active->matmul(g);
}

// ---- attention and positions ----

// (B, T, H, D) whose last two axes are dense.
struct Heads {
    float* data;
    index_t b, t, h, d, row, batch;
    Heads(const py::handle& object, const char* name, bool writeable = false) {
        py::array a = checked<float>(object, name, writeable);
        if (a.ndim() != 4) throw py::type_error(std::string(name) + ": expected (B, T, H, D), got " + std::to_string(a.ndim()) + " axes");
        data = const_cast<float*>(static_cast<const float*>(a.data()));
        b = a.shape(0), t = a.shape(1), h = a.shape(2), d = a.shape(3);
        batch = a.strides(0) / 4, row = a.strides(1) / 4;
        if (a.size() && ((d > 1 && a.strides(3) != 4) || (h > 1 && a.strides(2) != d * 4) || a.strides(0) % 4 || a.strides(1) % 4))
            throw py::type_error(std::string(name) + ": expected its last two axes dense");
    }
};

AttentionArgs attention_args(const py::object& q, const py::object& k, const py::object& v, const py::object& out_, const py::object& lse,
                             const py::object& q_segments, const py::object& k_segments, const py::object& starts, const py::object& bias,
                             index_t window, float scale, bool causal) {
    const Heads qh(q, "attention: q"), kh(k, "attention: k"), vh(v, "attention: v");
    AttentionArgs g{};
    g.q = qh.data, g.k = kh.data, g.v = vh.data;
    g.b = qh.b, g.tq = qh.t, g.tk = kh.t, g.h = qh.h, g.hkv = kh.h, g.d = qh.d;
    g.q_row = qh.row, g.k_row = kh.row, g.v_row = vh.row;
    g.q_batch = qh.batch, g.k_batch = kh.batch, g.v_batch = vh.batch;
    g.out = out(out_, "attention: out");
    g.lse = out(lse, "attention: lse");
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
    g.window = window, g.scale = scale, g.causal = causal;
    return g;
}

void attention(const py::object& q, const py::object& k, const py::object& v, const py::object& out_, const py::object& lse,
               const py::object& q_segments, const py::object& k_segments, const py::object& starts, const py::object& bias, index_t window,
               float scale, bool causal) {
    const AttentionArgs g = attention_args(q, k, v, out_, lse, q_segments, k_segments, starts, bias, window, scale, causal);
    py::gil_scoped_release release;
    active->attention(g);
}

void attention_vjp(const py::object& dout, const py::object& q, const py::object& k, const py::object& v, const py::object& out_,
                   const py::object& lse, const py::object& q_segments, const py::object& k_segments, const py::object& starts,
                   const py::object& bias, index_t window, float scale, bool causal, const py::object& dq, const py::object& dk,
                   const py::object& dv, const py::object& dbias) {
    AttentionArgs g = attention_args(q, k, v, out_, lse, q_segments, k_segments, starts, bias, window, scale, causal);
    g.dout = in(dout, "attention_vjp: dout");
    const Heads dqh(dq, "attention_vjp: dq", true), dkh(dk, "attention_vjp: dk", true), dvh(dv, "attention_vjp: dv", true);
    g.dq = dqh.data, g.dk = dkh.data, g.dv = dvh.data;
    g.dq_row = dqh.row, g.dk_row = dkh.row, g.dv_row = dvh.row;
    g.dq_batch = dqh.batch, g.dk_batch = dkh.batch, g.dv_batch = dvh.batch;
    g.dbias = out(dbias, "attention_vjp: dbias", true);
    py::gil_scoped_release release;
    active->attention_vjp(g);
}

void rope(const py::object& x, const py::object& y, const py::object& cos, const py::object& sin, const py::object& positions, index_t rotary,
          bool interleaved, bool inverse) {
    const Heads h(x, "rope: x");
    float* to = out(y, "rope: out");
    const float *c = in(cos, "rope: cos"), *s = in(sin, "rope: sin");
    const int32_t* p = dense<int32_t>(positions, "rope: positions");
    py::gil_scoped_release release;
    active->rope(h.data, to, c, s, p, h.b * h.t, h.h, h.d, rotary, h.row, interleaved, inverse);
}

double fma_peak(index_t rounds) {
    std::vector<float> sink(thread_limit());
    py::gil_scoped_release release;
    active->fma_peak(rounds, sink.data());
    return 2.0 * 24 * active->width * double(rounds) * double(sink.size());
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
        return py::dict(py::arg("in_use") = s.in_use, py::arg("cached") = s.cached, py::arg("peak") = s.peak, py::arg("system_calls") = s.system_calls);
    });
    m.def("empty", empty);
    m.def("matmul", matmul);
    m.def("attention", attention);
    m.def("attention_vjp", attention_vjp);
    m.def("rope", rope);
    m.def("fma_peak", fma_peak);
}
