// y = W x, one block of 16 rows and a panel of tokens at a time, whatever the layout.
#pragma once
#include "linear_quantised.h"
#include "linear_rows.h"

namespace inferloom {

// out[token * out_stride + row] for the panel's tokens; `out` has room for the tokens of the last tile's full size.
template <class S>
SIMD_INLINE void product(const Linear& w, int block, const Panel<S>& panel, float* out, int64_t out_stride, const Target& target) {
  if (w.quantised())
    quantised_product<S>(w, block, panel, out, out_stride, target);
  else
    rows_product<S>(w, block, panel, out, out_stride, target);
}

}  // namespace inferloom
