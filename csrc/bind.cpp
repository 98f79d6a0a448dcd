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
    m.def("fma_peak", fma_peak);
}
