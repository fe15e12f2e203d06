// Rows of floats into every form of an `Activations`.
#pragma once
#include "quantise.h"

namespace inferloom {

template <class S>
void convert(const float* input, int64_t input_stride, Activations* output, int row_begin, int row_end) {
  for (int row = row_begin; row < row_end; ++row)
    write_forms<S>(*output, row, 0, input + row * input_stride, output->cols);
}

}  // namespace inferloom
