// Adapters of different ranks in one batch, against double precision.
#include "../lora.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../operators.h"
#include "check.h"

namespace inferloom {
namespace {

float from_bf16(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

void run(const Operators& operators, int inputs, int outputs) {
  std::mt19937 random(9);
  const auto some_bf16 = [&](size_t n) {  // of ±[0.5, 2)
    std::vector<uint16_t> v(n);
    for (uint16_t& x : v) x = static_cast<uint16_t>((random() & 0x8000) | 0x3f00 | (random() & 0xff));
    return v;
  };
  const int rows = 6, stride = (inputs + 127) / 128 * 128, output_stride = outputs + 3, ranks[] = {1, 8, 33};
  std::vector<std::vector<uint16_t>> as, bs;
  std::vector<LoraAdapter> adapters;
  for (int rank : ranks) {
    as.push_back(some_bf16(static_cast<size_t>(rank) * inputs));
    bs.push_back(some_bf16(static_cast<size_t>(rank) * outputs));
    adapters.push_back({as.back().data(), bs.back().data(), rank, 0.25f * static_cast<float>(rank)});
  }
  const std::vector<uint16_t> x = some_bf16(static_cast<size_t>(rows) * stride);
  Activations input;
  input.cols = inputs, input.stride = stride, input.forms = kBfloat16, input.bf16 = const_cast<uint16_t*>(x.data());
  const int32_t adapter_of_row[rows] = {2, -1, 0, 1, 2, -1};
  std::vector<float> reduced(static_cast<size_t>(rows) * 40), output(static_cast<size_t>(rows) * output_stride, 1.5f);
  LoraJob job{&input, adapters.data(), adapter_of_row, reduced.data(), 40, output.data(), output_stride, outputs};
  const int blocks = (outputs + 15) / 16, cut = blocks / 2;
  operators.lora.reduce(job, 0, 2);
  operators.lora.reduce(job, 2, rows);
  operators.lora.expand(job, 0, cut, 0, rows);
  operators.lora.expand(job, cut, blocks, 0, rows);
  for (int row = 0; row < rows; ++row)
    for (int n = 0; n < output_stride; ++n) {
      double wanted = 1.5, size = 1;
      if (n < outputs && adapter_of_row[row] >= 0) {
        const LoraAdapter& adapter = adapters[static_cast<size_t>(adapter_of_row[row])];
        for (int r = 0; r < adapter.rank; ++r) {
          double dot = 0;
          for (int k = 0; k < inputs; ++k)
            dot += static_cast<double>(from_bf16(adapter.a[r * inputs + k])) *
                   from_bf16(x[static_cast<size_t>(row) * stride + k]);
          wanted += adapter.scale * dot * from_bf16(adapter.b[r * outputs + n]);
          size += std::fabs(adapter.scale) * inputs;
        }
      }
      const float got = output[static_cast<size_t>(row) * output_stride + n];
      CHECK(std::fabs(got - wanted) <= 1e-5 * size, "%s: %d to %d, row %d, output %d: %g, not %g", operators.name,
            inputs, outputs, row, n, got, wanted);
    }
}

void test(const Operators& operators) {
  run(operators, 576, 192);
  run(operators, 1, 1);
  run(operators, 33, 17);
  run(operators, 100, 79);
  run(operators, 1024, 129);
}

}  // namespace
}  // namespace inferloom

int main() { return inferloom::run_tests(inferloom::test); }
