// What both halves of the Python module share: arrays checked at the boundary, the table in use.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "kernels.h"

namespace py = pybind11;

using Object = const py::object&;

extern const Kernels* active;

void bind_decode(py::module_& m);  // bind_decode.cpp

// w: (format, words, scales or None, mins or None, O, I), sizes checked by the class Packed.
PackedArgs packed_args(const py::tuple& w);  // bind.cpp

template <class T> constexpr const char* kTypeName = "?";
template <> constexpr const char* kTypeName<float> = "float32";
template <> constexpr const char* kTypeName<double> = "float64";
template <> constexpr const char* kTypeName<int32_t> = "int32";
template <> constexpr const char* kTypeName<int64_t> = "int64";
template <> constexpr const char* kTypeName<uint16_t> = "uint16";
template <> constexpr const char* kTypeName<uint32_t> = "uint32";

// What a kernel reads, of an array of another layout: lives until the bound function returns.
inline py::array copied(const py::array& a) {
    py::array copy = py::module_::import("numpy").attr("require")(a, py::none(), "CA");
    py::detail::loader_life_support::add_patient(copy);
    return copy;
}

// An array of dtype T, aligned.
template <class T>
py::array checked(const py::handle& object, const char* name, bool writeable) {
    const auto fail = [&](const std::string& what) {
        throw py::type_error(std::string(name) + ": expected a C-contiguous, aligned " + kTypeName<T> + " array" +
                             (writeable ? " that can be written" : "") + ", got " + what);
    };
    if (!py::isinstance<py::array>(object)) fail(py::str(py::type::of(object)).cast<std::string>());
    py::array a = py::reinterpret_borrow<py::array>(object);
    const py::dtype want = py::dtype::of<T>(), got = a.dtype();
    if (!got.is(want) && !want.equal(got)) fail(py::str(py::object(got)).cast<std::string>());  // the same object, nearly always
    if (writeable && !a.writeable()) fail("a read-only one");
    if (a.size() && reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T)) {
        if (writeable) fail("a misaligned one");
        return copied(a);
    }
    return a;
}

// A dense array, or None where `optional`; one to be read is copied where it has another layout.
template <class T>
T* dense(const py::handle& object, const char* name, bool writeable = false, bool optional = false) {
    if (optional && object.is_none()) return nullptr;
    py::array a = checked<T>(object, name, writeable);
    if (!(a.flags() & py::array::c_style)) {
        if (writeable) throw py::type_error(std::string(name) + ": expected a C-contiguous array, got a strided view");
        a = copied(a);
    }
    return const_cast<T*>(static_cast<const T*>(a.data()));
}
inline const float* in(const py::handle& o, const char* name, bool optional = false) { return dense<float>(o, name, false, optional); }
inline float* out(const py::handle& o, const char* name, bool optional = false) { return dense<float>(o, name, true, optional); }

inline index_t size(const py::handle& a) { return py::reinterpret_borrow<py::array>(a).size(); }
