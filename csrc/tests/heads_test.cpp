// Per-head norms, rotations and the pages of keys and values, against double precision.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../kernels/kv_layout.h"
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

std::vector<double> prepared(const float* x, const float* weight, const float* cos_sin, int dim, int rotary,
                             double eps) {
  std::vector<double> y(x, x + dim);
  if (weight) {
    double squares = 0;
    for (double v : y) squares += v * v / dim;
    for (int i = 0; i < dim; ++i) y[i] = y[i] / std::sqrt(squares + eps) * weight[i];
  }
  if (cos_sin)
    for (int i = 0; i < rotary / 2; ++i) {
      const double a = y[i], b = y[i + rotary / 2], c = cos_sin[i], s = cos_sin[rotary / 2 + i];
      y[i] = a * c - b * s;
      y[i + rotary / 2] = b * c + a * s;
    }
  return y;
}

struct Shape {
  int heads, kv_heads, dim, rotary;
  bool norms;
  KvType type;
};

void run(const Operators& operators, const Shape& s) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const int rows = 7, width = (s.heads + 2 * s.kv_heads) * s.dim, stride = width + 9;
  const int32_t positions[rows] = {0, 1, 2, 37, 63, 15, 16}, pages[rows] = {3, 3, 3, 0, 0, 1, 1};
  std::vector<float> x(static_cast<size_t>(rows) * stride), norms(static_cast<size_t>(2 * s.dim)),
      tables(64 * static_cast<size_t>(s.rotary) + 1);
  for (float& v : x) v = normal(random);
  for (float& v : norms) v = normal(random);
  for (float& v : tables) v = normal(random);
  const std::vector<float> before = x;
  const KvLayout layout{s.dim, s.type};
  const size_t page_bytes = kv_page_bytes(s.type, s.kv_heads, s.dim);
  std::vector<uint8_t> memory(page_bytes * 4 + 64, 0xcd);
  KvPool pool{memory.data(), static_cast<int64_t>(page_bytes), s.type, s.kv_heads, s.dim};
  HeadJob job{x.data(), stride, s.norms ? norms.data() : nullptr, s.norms ? norms.data() + s.dim : nullptr, 1e-6f,
              s.rotary ? tables.data() : nullptr, s.rotary, s.heads, s.kv_heads, s.dim};
  operators.heads(job, pool, positions, pages, 0, 2);
  operators.heads(job, pool, positions, pages, 2, rows);

  for (int row = 0; row < rows; ++row) {
    const float* old = before.data() + static_cast<size_t>(row) * stride;
    const float* cos_sin = s.rotary ? tables.data() + positions[row] * s.rotary : nullptr;
    for (int h = 0; h < s.heads + s.kv_heads; ++h) {
      const float* weight = !s.norms ? nullptr : h < s.heads ? norms.data() : norms.data() + s.dim;
      const std::vector<double> wanted = prepared(old + h * s.dim, weight, cos_sin, s.dim, s.rotary, 1e-6);
      double worst = 0, page_error = 0, largest = 0;
      for (double v : wanted) largest = std::max(largest, std::fabs(v));
      for (int i = 0; i < s.dim; ++i) {
        if (h < s.heads) {
          worst = std::max(worst, std::fabs(x[static_cast<size_t>(row) * stride + h * s.dim + i] - wanted[i]));
          continue;
        }
        const int head = h - s.heads, place = positions[row] % kPageSize;
        const uint8_t* begin = memory.data() + pages[row] * page_bytes + head * layout.head_bytes();
        const double value = old[(h + s.kv_heads) * s.dim + i];
        double key_back, value_back, bound = 1.0 / 256;
        if (s.type == KvType::BF16) {
          key_back = from_bf16(reinterpret_cast<const uint16_t*>(begin + layout.keys())[layout.key_element(place, i)]);
          value_back =
              from_bf16(reinterpret_cast<const uint16_t*>(begin + layout.values())[layout.value_element(place, i)]);
        } else {
          bound = 0.51 / 127;
          key_back = reinterpret_cast<const int8_t*>(begin + layout.keys())[layout.key_element(place, i)] *
                     static_cast<double>(reinterpret_cast<const float*>(begin + layout.key_scales())[place]);
          value_back = reinterpret_cast<const int8_t*>(begin + layout.values())[layout.value_element(place, i)] *
                       static_cast<double>(reinterpret_cast<const float*>(begin + layout.value_scales())[place]);
        }
        page_error = std::max(page_error, std::fabs(key_back - wanted[i]) - bound * largest);
        page_error = std::max(page_error, std::fabs(value_back - value) - bound * 5);
      }
      CHECK(worst <= 1e-5 * (1 + largest), "%s: head_dim %d, rotary %d: query off by %g", operators.name, s.dim,
            s.rotary, worst);
      CHECK(page_error <= 1e-5 * (1 + largest), "%s: head_dim %d, rotary %d: page off by %g", operators.name, s.dim,
            s.rotary, page_error);
    }
    for (int i = width - s.kv_heads * s.dim; i < stride; ++i)
      CHECK(x[static_cast<size_t>(row) * stride + i] == old[i], "%s: column %d was changed", operators.name, i);
  }
  // Page 2 is nobody's.
  for (size_t i = 0; i < page_bytes; ++i)
    CHECK(memory[2 * page_bytes + i] == 0xcd, "%s: wrote to another page", operators.name);
}

void test(const Operators& operators) {
  for (KvType type : {KvType::BF16, KvType::INT8})
    for (bool norms : {false, true})
      for (const Shape& s :
           {Shape{1, 1, 16, 16, norms, type}, Shape{9, 3, 64, 64, norms, type}, Shape{4, 2, 128, 128, norms, type},
            Shape{4, 4, 64, 16, norms, type}, Shape{2, 1, 80, 20, norms, type}, Shape{2, 1, 96, 0, norms, type},
            Shape{2, 2, 256, 256, norms, type}})
        run(operators, s);
}

}  // namespace
}  // namespace inferloom

int main() { return inferloom::run_tests(inferloom::test); }
