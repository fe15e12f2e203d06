// The parts of the extension module. Addresses and sizes cross the border as integers; whoever passes an address keeps what
// lies there alive during the call. None of the functions keeps one, a `Decoder` excepted.
#pragma once
#include <nanobind/nanobind.h>

namespace inferloom {

void bind_operators(nanobind::module_& module);
void bind_decoder(nanobind::module_& module);
void bind_probes(nanobind::module_& module);

}  // namespace inferloom
