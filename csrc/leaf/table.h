// The table of one instruction set: every operator over its `Simd`. Included by the leaf files alone. These and all
// they include use neither containers nor algorithms of the standard library: an inline function compiled for a wide
// processor must not be the copy that the linker keeps for everyone.
#pragma once
#include "../kernels/attention.h"
#include "../kernels/convert.h"
#include "../kernels/embed.h"
#include "../kernels/gated.h"
#include "../kernels/heads.h"
#include "../kernels/linear_layer.h"
#include "../kernels/lora.h"
#include "../kernels/norm.h"
#include "../kernels/sampling.h"
#include "../kernels/soft_cap.h"
#include "tables.h"

namespace inferloom {

template <class S>
constexpr Operators make_table(const char* name) {
  return {name,      &linear<S>, &bound<S>, &settle<S>, &gated<S>, &norm<S>,   &norm_rows<S>, &convert<S>,
          &embed<S>, &heads<S>,  &attend<S>, &merge<S>, &soft_cap<S>,
          sampling_operators<S>(), lora_operators<S>()};
}

}  // namespace inferloom
