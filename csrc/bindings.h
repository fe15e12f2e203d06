// The parts of the extension module, and what they share. Addresses and sizes cross the border as integers, 0 for a
// missing array; whoever passes an address keeps what lies there alive during the call. None of the functions keeps
// one, a `Decoder` excepted.
#pragma once
#include <nanobind/nanobind.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "operators.h"

namespace inferloom {

void bind_operators(nanobind::module_& module);
void bind_attention(nanobind::module_& module);
void bind_decoder(nanobind::module_& module);
void bind_sampling(nanobind::module_& module);
void bind_probes(nanobind::module_& module);

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
Address address_of(const T* pointer) {
  return reinterpret_cast<Address>(pointer);
}

inline void require(bool condition, const char* sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

// Asked at each call, so that INFERLOOM_ISA may change in between.
inline const Operators& table() { return operators(best_isa()); }

inline int threads_for(int units) { return std::max(1, std::min(units, omp_get_max_threads())); }

// Calls work(operators, begin, end) for contiguous shares of [0, units), one a thread. Nothing in a region may throw.
template <class Work>
void divide(int units, const Work& work) {
  const Operators& ops = table();
  const int threads = threads_for(units);
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), there = omp_get_num_threads();
    const int begin = static_cast<int>(units * me / there), end = static_cast<int>(units * (me + 1) / there);
    if (begin < end) work(ops, begin, end);
  }
}

}  // namespace inferloom
