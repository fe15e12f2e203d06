// RMSNorm and LayerNorm against double precision, in every form, and the soft cap.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../operators.h"
#include "check.h"

namespace inferloom {
namespace {

struct Forms {
  Forms(int rows, int cols, int group) : stride((cols + 127) / 128 * 128) {
    const size_t elements = static_cast<size_t>(rows) * stride, groups = elements / group;
    f32.resize(elements), bf16.resize(elements), q8.resize(elements);
    scale.resize(groups), scaled_sum.resize(elements / 32), sum.resize(elements / 32);
    view = {cols, stride, kFloat | kBfloat16 | kInt8, group, f32.data(), bf16.data(), q8.data(), scale.data(), scaled_sum.data(), sum.data()};
  }
  int stride;
  std::vector<float> f32, scale, scaled_sum;
  std::vector<uint16_t> bf16;
  std::vector<int8_t> q8;
  std::vector<int32_t> sum;
  Activations view;
};

float from_bf16(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

void check_row(const Forms& out, int row, const std::vector<double>& wanted, const char* what, const char* isa) {
  const int cols = static_cast<int>(wanted.size());
  double largest = 0, float_error = 0, bf16_error = 0, int8_error = 0;
  bool sums = true, zeros = true;
  for (double x : wanted) largest = std::max(largest, std::fabs(x));
  for (int i = 0; i < out.stride; ++i) {
    const size_t at = static_cast<size_t>(row) * out.stride + i;
    const size_t group = static_cast<size_t>(row) * out.view.groups() + i / out.view.group;
    const double x = i < cols ? wanted[i] : 0.0;
    float_error = std::max(float_error, std::fabs(out.f32[at] - x));
    bf16_error = std::max(bf16_error, std::fabs(from_bf16(out.bf16[at]) - x) - std::fabs(x) / 256);
    int8_error = std::max(int8_error, std::fabs(static_cast<double>(out.q8[at]) * out.scale[group] - x) - 0.51 * out.scale[group]);
    if (i >= cols) zeros = zeros && out.f32[at] == 0 && out.bf16[at] == 0 && out.q8[at] == 0;
    if (i % 32) continue;
    int sum = 0;
    for (int j = 0; j < 32; ++j) sum += out.q8[at + static_cast<size_t>(j)];
    sums = sums && sum == out.sum[at / 32] && std::fabs(out.scaled_sum[at / 32] - sum * static_cast<double>(out.scale[group])) < 1e-4;
  }
  CHECK(float_error <= 3e-6 * largest, "%s: %s of %d: float off by %g", isa, what, cols, float_error);
  CHECK(bf16_error <= 1e-5 * largest, "%s: %s of %d: bfloat16 off by %g", isa, what, cols, bf16_error);
  CHECK(int8_error <= 1e-5 * largest, "%s: %s of %d: int8 off by %g", isa, what, cols, int8_error);
  CHECK(sums, "%s: %s of %d: sums of groups", isa, what, cols);
  CHECK(zeros, "%s: %s of %d: columns past the end", isa, what, cols);
}

void test_norms(const Operators& operators) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (int cols : {1, 15, 16, 64, 100, 128, 576, 1000, 2048})
    for (int group : {32, 128})
      for (NormKind kind : {NormKind::RMS, NormKind::LAYER})
        for (bool weighted : {true, false}) {
          const int rows = 3, stride = cols + 3;
          std::vector<float> x(static_cast<size_t>(rows) * stride), weight(static_cast<size_t>(cols)), bias(weight.size());
          for (float& v : x) v = 0.5f + 3 * normal(random);
          for (float& v : weight) v = normal(random);
          for (float& v : bias) v = normal(random);
          const bool biased = weighted && kind == NormKind::LAYER;
          NormJob job{};
          job.input = x.data(), job.input_stride = stride, job.cols = cols, job.eps = 1e-5f, job.kind = kind;
          job.weight = weighted ? weight.data() : nullptr;
          job.bias = biased ? bias.data() : nullptr;
          Forms out(rows, cols, group);
          operators.norm(job, &out.view, 0, rows);
          std::vector<float> in_place = x;
          NormJob rows_job = job;
          rows_job.input = in_place.data();
          operators.norm_rows(rows_job, in_place.data(), stride, 0, rows);
          for (int row = 0; row < rows; ++row) {
            const float* v = x.data() + static_cast<size_t>(row) * stride;
            double mean = 0, squares = 0;
            if (kind == NormKind::LAYER)
              for (int i = 0; i < cols; ++i) mean += v[i] / static_cast<double>(cols);
            for (int i = 0; i < cols; ++i) squares += (v[i] - mean) * (v[i] - mean) / cols;
            std::vector<double> wanted;
            for (int i = 0; i < cols; ++i)
              wanted.push_back((v[i] - mean) / std::sqrt(squares + job.eps) * (weighted ? weight[i] : 1) + (biased ? bias[i] : 0));
            check_row(out, row, wanted, kind == NormKind::RMS ? "RMSNorm" : "LayerNorm", operators.name);
            for (int i = 0; i < stride; ++i)
              CHECK(in_place[static_cast<size_t>(row) * stride + i] == (i < cols ? out.f32[static_cast<size_t>(row) * out.stride + i] : v[i]),
                    "%s: norm_rows differs from norm at column %d of %d", operators.name, i, cols);
          }
        }
}

void test_soft_cap(const Operators& operators) {
  for (int cols : {1, 16, 49}) {
    const int stride = cols + 2;
    std::vector<float> x(static_cast<size_t>(3) * stride);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) - static_cast<float>(x.size()) / 2;
    const std::vector<float> before = x;
    operators.soft_cap(x.data(), stride, cols, 30.0f, 1, 3);
    for (int row = 0; row < 3; ++row)
      for (int i = 0; i < stride; ++i) {
        const size_t at = static_cast<size_t>(row) * stride + i;
        const double wanted = row && i < cols ? 30 * std::tanh(before[at] / 30.0) : before[at];
        CHECK(std::fabs(x[at] - wanted) < 1e-5, "%s: soft cap of %g gives %g", operators.name, before[at], x[at]);
      }
  }
}

void test(const Operators& operators) {
  test_norms(operators);
  test_soft_cap(operators);
}

}  // namespace
}  // namespace inferloom

int main() { return inferloom::run_tests(inferloom::test); }
