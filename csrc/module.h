// A Python module that holds nothing but texts: its import loads the library that it is part of.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <initializer_list>
#include <utility>

// The interpreter brings these: weak, so that the linker may insist on every other symbol.
#pragma weak PyModule_AddStringConstant
#pragma weak PyModule_Create2
#pragma weak _Py_Dealloc

namespace histloss {

inline PyObject* make_module(PyModuleDef& definition,
                             std::initializer_list<std::pair<const char*, const char*>> texts) {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  for (const auto& [name, text] : texts) {
    if (PyModule_AddStringConstant(module, name, text) < 0) {
      Py_DECREF(module);
      return nullptr;
    }
  }
  return module;
}

}  // namespace histloss
