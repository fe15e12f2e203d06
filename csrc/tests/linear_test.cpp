// Linear layers, gated units, conversions and embeddings of every instruction set against sums in double precision: odd sizes, every
// layout, one token to many; and that a token's result is the same bits however the work was divided.
#include <algorithm>
#include <string>

#include "check.h"
#include "matrices.h"

using namespace inferloom;

namespace {

constexpr Layout kLayouts[] = {Layout::F32, Layout::F16, Layout::BF16, Layout::Q8_32, Layout::Q8_ROW, Layout::Q4_32, Layout::Q4S_32, Layout::Q4Z_32, Layout::Q8_HALVES};
const char* const kNames[] = {"F32", "F16", "BF16", "Q8_32", "Q8_ROW", "Q4_32", "Q4S_32", "Q4Z_32", "Q8_HALVES"};
const char* name(Layout layout) { return kNames[static_cast<int>(layout)]; }

std::vector<float> random_rows(int rows, int cols, Random& random) {
  std::vector<float> x(static_cast<size_t>(rows) * static_cast<size_t>(cols));
  for (float& v : x) v = random.uniform();
  return x;
}

// (W x + bias)[token, row] and the sum of its terms' magnitudes, to which rounding errors are compared.
struct Expected { double value, magnitude; };
Expected expect(const Matrix& w, const Input& x, int token, int row) {
  Expected e{0, 0};
  for (int k = 0; k < w.view.cols; ++k) {
    const double term = static_cast<double>(w.values[static_cast<size_t>(row) * static_cast<size_t>(w.view.cols) + static_cast<size_t>(k)]) *
                        x.seen(w.view.layout, token, k);
    e.value += term;
    e.magnitude += std::fabs(term);
  }
  if (!w.bias.empty()) e.value += w.bias[static_cast<size_t>(row)];
  return e;
}

// Float32 sums of K terms; a minimum of Q4_32 cancels most of its scale's part, so that a term's two halves are larger than it.
double tolerance(Layout layout, const Expected& e) { return (layout == Layout::Q4_32 ? 4e-6 : 1e-6) * e.magnitude + 1e-6; }

void test_convert(const Operators& op, int rows, int cols, int group) {
  Random random(1);
  const auto x = random_rows(rows, cols, random);
  Input in(rows, cols, group);
  op.convert(x.data(), cols, &in.view, 0, rows);
  for (int m = 0; m < rows; ++m) {
    for (int k = 0; k < in.view.stride; ++k) {
      const int64_t at = static_cast<int64_t>(m) * in.view.stride + k;
      const float value = k < cols ? x[static_cast<size_t>(m) * static_cast<size_t>(cols) + static_cast<size_t>(k)] : 0.0f;
      CHECK(in.view.f32[at] == value, "convert float [%d, %d]", m, k);
      CHECK(in.view.bf16[at] == to_bf16(value), "convert bfloat16 [%d, %d]", m, k);
      const double step = in.view.scale[at / group];
      CHECK(std::fabs(static_cast<double>(in.view.q8[at]) * step - static_cast<double>(value)) <= step * 0.501, "convert int8 [%d, %d] of %d columns", m, k, cols);
    }
    int largest = 0;
    for (int k = 0, sum = 0; k < in.view.stride; ++k) {
      const int q = in.view.q8[static_cast<int64_t>(m) * in.view.stride + k];
      if (k % 32 == 0) sum = 0;
      if (k % group == 0) largest = 0;
      sum += q;
      largest = std::max(largest, std::abs(q));
      CHECK(largest <= 127, "convert range of column %d", k);
      if ((k + 1) % group == 0) CHECK(largest == 127 || k + 1 - group >= cols, "convert uses the range, column %d", k);
      if ((k + 1) % 32) continue;
      const int at = m * in.view.sums() + k / 32;
      CHECK(in.view.sum[at] == sum, "convert sum of columns %d", k);
      CHECK(in.view.scaled_sum[at] == in.view.scale[m * in.view.groups() + k / group] * static_cast<float>(sum), "convert scaled sum of columns %d", k);
    }
  }
}

void test_linear(const Operators& op, Layout layout, int rows, int cols, int tokens, int group, uint64_t seed) {
  Random random(seed);
  const Matrix w = random_matrix(layout, rows, cols, random, seed % 2 == 0, true);
  Input in(tokens, cols, group);
  op.convert(random_rows(tokens, cols, random).data(), cols, &in.view, 0, tokens);
  const int64_t stride = rows + 3;
  const auto before = random_rows(tokens, static_cast<int>(stride), random);
  auto y = before;
  const bool add = seed % 3 == 0;
  const float factor = seed % 3 == 1 ? 0.5f : 1.0f;
  LinearJob job{&w.view, &in.view, y.data(), stride, factor, add};
  op.linear(job, 0, w.view.blocks(), 0, tokens);
  // All results of small products, a scattering of large ones.
  const int pick = std::max(1, rows * tokens / 4000);
  for (int i = 0; i < rows * tokens; i += 1 + static_cast<int>(random.next() % static_cast<uint64_t>(pick))) {
    const int m = i / rows, n = i % rows;
    const auto at = static_cast<size_t>(m * stride + n);
    Expected e = expect(w, in, m, n);
    const double value = static_cast<double>(factor) * e.value + (add ? static_cast<double>(before[at]) : 0.0);
    CHECK(std::fabs(static_cast<double>(y[at]) - value) <= tolerance(layout, e), "%s %dx%d, %d tokens, groups of %d: [%d, %d] is %g, not %g",
          name(layout), rows, cols, tokens, group, m, n, static_cast<double>(y[at]), value);
  }
  for (int m = 0; m < tokens; ++m)
    for (int64_t n = rows; n < stride; ++n)
      CHECK(y[static_cast<size_t>(m * stride + n)] == before[static_cast<size_t>(m * stride + n)], "%s writes past its rows", name(layout));

  // The same in shares: blocks and tokens divided at random, and every token alone.
  auto shares = before;
  job.output = shares.data();
  const int cut_block = static_cast<int>(random.next() % static_cast<uint64_t>(w.view.blocks() + 1));
  const int cut_token = static_cast<int>(random.next() % static_cast<uint64_t>(tokens + 1));
  for (int part = 0; part < 2; ++part) {
    const int from = part ? cut_block : 0, to = part ? w.view.blocks() : cut_block;
    op.linear(job, from, to, 0, cut_token);
    for (int m = cut_token; m < std::min(tokens, cut_token + 5); ++m) op.linear(job, from, to, m, m + 1);
    op.linear(job, from, to, std::min(tokens, cut_token + 5), tokens);
  }
  CHECK(std::memcmp(shares.data(), y.data(), y.size() * 4) == 0, "%s %dx%d, %d tokens: the division changes bits", name(layout), rows, cols, tokens);
}

// Rows whose greatest result alone is asked for: it is the same bits in the same place, whatever the division. `peak`: whether it stands
// out, so that most blocks are left out.
void test_best(const Operators& op, Layout layout, int rows, int cols, int tokens, int group, bool peak, uint64_t seed) {
  Random random(seed);
  const Matrix w = random_matrix(layout, rows, cols, random, false, true), beside = screen_of(w);
  Input in(tokens, cols, group);
  auto x = random_rows(tokens, cols, random);
  for (int m = 0; peak && m < tokens; ++m)  // towards a row
    for (int k = 0; k < cols; ++k)
      x[static_cast<size_t>(m * cols + k)] += 4 * w.values[static_cast<size_t>((37 * m + 11) % rows * cols + k)];
  op.convert(x.data(), cols, &in.view, 0, tokens);
  std::vector<float> all(static_cast<size_t>(rows * tokens)), some(all.size(), 7.0f);
  LinearJob job{&w.view, &in.view, all.data(), rows, 0.5f, false};
  op.linear(job, 0, w.view.blocks(), 0, tokens);
  job.output = some.data();
  const int cut = static_cast<int>(random.next() % static_cast<uint64_t>(w.view.blocks() + 1));
  Peak peaks[kScreenedRows];
  std::fill_n(peaks, kScreenedRows, Peak{-INFINITY, 0});
  LinearJob bounds = job;
  if (layout != Layout::Q8_HALVES) bounds.weight = &beside.view;
  op.bound(bounds, peaks, cut, w.view.blocks(), 0, tokens);
  op.bound(bounds, peaks, 0, cut, 0, tokens);
  Best best[2][kScreenedRows];
  for (int m = 0; m < tokens; ++m) {
    const float *y = all.data() + m * rows, *z = some.data() + m * rows;
    for (int n = 0; n < rows; ++n) CHECK(z[n] >= y[n], "bound of %dx%d, %d tokens: [%d, %d] is %g, below %g", rows, cols, tokens, m, n, static_cast<double>(z[n]), static_cast<double>(y[n]));
    const auto at = std::max_element(z, z + rows) - z;
    CHECK(peaks[m].bound == z[at] && peaks[m].block == at / kRowBlock, "peak of %dx%d, %d tokens, token %d", rows, cols, tokens, m);
    CHECK(op.settle(job, &best[0][m], peaks[m].block, peaks[m].block + 1, m, m + 1) == 1, "%dx%d: the block with the peak is left out", rows, cols);
    const auto *block = y + peaks[m].block * kRowBlock, *greatest = std::max_element(block, std::min(block + kRowBlock, y + rows));
    CHECK(best[0][m].value == *greatest && best[0][m].id == greatest - y, "best of the peak's block, %dx%d, token %d", rows, cols, m);
    best[1][m] = best[0][m];
  }
  const int opened = op.settle(job, best[0], 0, cut, 0, tokens) + op.settle(job, best[1], cut, w.view.blocks(), 0, tokens);
  for (int m = 0; m < tokens; ++m) {
    const float* y = all.data() + m * rows;
    const auto at = std::max_element(y, y + rows) - y;
    best[0][m].see(best[1][m].value, best[1][m].id);
    CHECK(best[0][m].id == at && best[0][m].value == y[at], "best of %dx%d, %d tokens, token %d", rows, cols, tokens, m);
  }
  const int left_out = w.view.blocks() - opened;
  CHECK(!peak || rows < 100 || left_out > w.view.blocks() / 2, "%dx%d, %d tokens: only %d blocks are left out", rows, cols, tokens, left_out);
}

double activated(Activation kind, double x) {
  switch (kind) {
    case Activation::SILU: return x / (1 + std::exp(-x));
    case Activation::GELU: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::GELU_TANH: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    default: return x;
  }
}

void test_gated(const Operators& op, Layout gate_layout, Layout up_layout, int rows, int cols, int tokens, Activation kind, bool with_up) {
  Random random(static_cast<uint64_t>(rows + cols + tokens));
  const Matrix gate = random_matrix(gate_layout, rows, cols, random, with_up, true);
  const Matrix up = random_matrix(up_layout, rows, cols, random, !with_up, true);
  Input in(tokens, cols, 32), out(tokens, rows, 32), shares(tokens, rows, 32);
  op.convert(random_rows(tokens, cols, random).data(), cols, &in.view, 0, tokens);
  GatedJob job{&gate.view, with_up ? &up.view : nullptr, &in.view, &out.view, kind};
  const int units = (rows + kGatedUnit - 1) / kGatedUnit;
  op.gated(job, 0, units, 0, tokens);
  for (int m = 0; m < tokens; ++m) {
    for (int n = 0; n < rows; n += 1 + rows * tokens / 4000) {
      const Expected g = expect(gate, in, m, n), u = with_up ? expect(up, in, m, n) : Expected{1, 0};
      const double value = activated(kind, g.value) * u.value;
      const double slack = 2 * tolerance(gate_layout, g) * std::fabs(u.value) + tolerance(up_layout, u) * std::fabs(activated(kind, g.value)) +
                           2e-6 * std::fabs(value) + 1e-6;
      const float h = out.view.f32[static_cast<int64_t>(m) * out.view.stride + n];
      CHECK(std::fabs(static_cast<double>(h) - value) <= slack, "gated %s %dx%d, %d tokens, activation %d: [%d, %d] is %g, not %g", name(gate_layout), rows, cols,
            tokens, static_cast<int>(kind), m, n, static_cast<double>(h), value);
    }
  }
  // The other forms are what `convert` makes of the floats, and shares of the work make the same.
  Input again(tokens, rows, 32);
  op.convert(out.view.f32, out.view.stride, &again.view, 0, tokens);
  job.output = &shares.view;
  for (int unit = units - 1; unit >= 0; --unit) {
    op.gated(job, unit, unit + 1, 0, tokens / 2);
    op.gated(job, unit, unit + 1, tokens / 2, tokens);
  }
  for (const Input* other : {&again, &shares}) {
    const size_t n = static_cast<size_t>(tokens) * static_cast<size_t>(out.view.stride);
    CHECK(std::memcmp(other->view.f32, out.view.f32, n * 4) == 0, "gated %s: floats differ", name(gate_layout));
    CHECK(std::memcmp(other->view.bf16, out.view.bf16, n * 2) == 0, "gated %s: bfloat16 differs", name(gate_layout));
    CHECK(std::memcmp(other->view.q8, out.view.q8, n) == 0, "gated %s: int8 differs", name(gate_layout));
    CHECK(std::memcmp(other->view.scaled_sum, out.view.scaled_sum, n / 32 * 4) == 0, "gated %s: sums differ", name(gate_layout));
  }
}

void test_embed(const Operators& op, Layout layout, int rows, int cols) {
  Random random(7);
  const Matrix w = random_matrix(layout, rows, cols, random, false, true);
  const int32_t ids[] = {0, rows - 1, rows / 2, 1, rows / 2};
  std::vector<float> y(5 * static_cast<size_t>(cols + 1), -5.0f);
  op.embed(w.view, ids, 3.0f, y.data(), cols + 1, 1, 5);
  for (int m = 1; m < 5; ++m) {
    for (int k = 0; k < cols; ++k) {
      const double value = 3.0 * static_cast<double>(w.values[static_cast<size_t>(ids[m]) * static_cast<size_t>(cols) + static_cast<size_t>(k)]);
      const float got = y[static_cast<size_t>(m * (cols + 1) + k)];
      CHECK(std::fabs(static_cast<double>(got) - value) <= 1e-6, "embed %s [%d, %d] is %g, not %g", name(layout), ids[m], k, static_cast<double>(got), value);
    }
    CHECK(y[static_cast<size_t>(m * (cols + 1) + cols)] == -5.0f, "embed %s writes past its columns", name(layout));
  }
  CHECK(y[0] == -5.0f, "embed %s writes another's row", name(layout));
}

void test_all(const Operators& op) {
  for (int cols : {1, 31, 64, 100, 576}) {
    test_convert(op, 3, cols, 32);
    test_convert(op, 3, cols, 64);
    test_convert(op, 3, cols, 128);
  }
  const int shapes[][3] = {{16, 32, 1}, {17, 33, 2}, {1, 1, 3}, {40, 576, 1}, {48, 100, 4}, {33, 1025, 5}, {72, 130, 7}, {16, 64, 9}, {35, 300, 13},
                           {20, 2100, 16}, {51, 96, 17}, {64, 160, 31}, {48, 257, 70}, {24, 64, 300}};
  uint64_t seed = 0;
  for (Layout layout : kLayouts) {
    for (const auto& s : shapes) {
      test_linear(op, layout, s[0], s[1], s[2], 32, seed++);
      for (int group : {64, 128})
        if (layout >= Layout::Q8_32) test_linear(op, layout, s[0], s[1], s[2], group, seed++);
    }
    for (int tokens = 1; tokens <= 17; ++tokens) test_linear(op, layout, 32, 64, tokens, 32, seed++);
    test_gated(op, layout, layout, 128, 96, 1, Activation::SILU, true);
    test_gated(op, layout, layout, 300, 65, 5, Activation::GELU_TANH, true);
    test_gated(op, layout, layout, 200, 128, 70, Activation::GELU, false);
    test_embed(op, layout, 50, 100);
    test_embed(op, layout, 16, 33);
  }
  for (int tokens = 1; tokens <= kScreenedRows; ++tokens) {
    for (const Layout layout : {Layout::Q8_HALVES, Layout::Q8_32}) {
      test_best(op, layout, 2000, 576, tokens, 128, false, seed++);
      test_best(op, layout, 1999, 1024, tokens, 128, true, seed++);
      test_best(op, layout, 333, 100, tokens, 32, false, seed++);
      test_best(op, layout, 3000, 640, tokens, 32, true, seed++);
      test_best(op, layout, 7, 33, tokens, 64, true, seed++);
    }
  }
  test_gated(op, Layout::Q4_32, Layout::BF16, 160, 64, 3, Activation::SILU, true);
  test_gated(op, Layout::F16, Layout::Q8_32, 160, 64, 3, Activation::SILU, true);
}

}  // namespace

int main() { return run_tests(test_all); }
