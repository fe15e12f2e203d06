// Single operators for Python: the tests, and decoders that the C++ step does not know. Every call is a parallel region
// of its own. Arguments are addresses and sizes; a missing array is the address 0. Rows are float32 and `stride`
// elements apart.
#include "bindings.h"
#include "buffers.h"
#include "operators.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace inferloom {

namespace {

// The input or the output of operators, in the forms that are asked for; owns its memory.
class Rows {
 public:
  Rows(int count, int cols, uint32_t forms, int group) : count_(count), buffer_(cols, forms, group) {
    require(count >= 0 && cols > 0, "rows and columns must be positive");
    require(forms != 0 && forms < 8, "forms is a sum of 1 (float32), 2 (bfloat16) and 4 (int8)");
    require(group == 32 || group == 64 || group == 128, "groups have 32, 64 or 128 columns");
    buffer_.reserve(count);
    view_ = buffer_.view(forms);
  }

  int count() const { return count_; }
  // What a call that names a number of rows works on; −1: all.
  int counted(int rows) const {
    require(rows >= -1 && rows <= count_, "there are not that many rows");
    return rows < 0 ? count_ : rows;
  }
  Activations& view() { return view_; }
  const Activations& view() const { return view_; }

  void require_form(const Linear& weight) const {
    require(view_.cols == weight.cols, "the rows have another number of columns than the weights");
    require((view_.forms & form_of(weight.layout)) != 0, "the rows lack the form that these weights want");
    require(weight.layout != Layout::Q4_DITHERED, "a screen gives bounds, no products");
    require(!weight.quantised() || reinterpret_cast<Address>(weight.data) % 64 == 0,
            "packed weights begin at a multiple of 64 bytes");
  }

 private:
  int count_;
  ActivationBuffer buffer_;
  Activations view_;
};

void convert(Address input, int64_t stride, Rows& output, int rows) {
  require(stride >= output.view().cols, "rows overlap");
  divide(output.counted(rows), [&](const Operators& ops, int begin, int end) {
    ops.convert(at<const float>(input), stride, &output.view(), begin, end);
  });
}

void linear(const Linear& weight, const Rows& input, Address output, int64_t stride, float factor, bool add, int rows) {
  const int count = input.counted(rows);
  input.require_form(weight);
  require(stride >= weight.rows, "rows overlap");
  const LinearJob job{&weight, &input.view(), at<float>(output), stride, factor, add};
  divide(weight.blocks(), [&](const Operators& ops, int begin, int end) { ops.linear(job, begin, end, 0, count); });
}

void gated(const Linear& gate, const Linear* up, const Rows& input, Rows& output, int activation) {
  require(activation >= 0 && activation <= static_cast<int>(Activation::NONE), "no such activation");
  require(up || activation != static_cast<int>(Activation::NONE), "a layer without `up` has an activation");
  input.require_form(gate);
  if (up) input.require_form(*up);
  require(output.view().cols == gate.rows && (!up || up->rows == gate.rows), "gate, up and output differ in size");
  require(output.count() >= input.count(), "the output has too few rows");
  const GatedJob job{&gate, up, &input.view(), &output.view(), static_cast<Activation>(activation)};
  const int units = (gate.rows + kGatedUnit - 1) / kGatedUnit;
  divide(units, [&](const Operators& ops, int begin, int end) { ops.gated(job, begin, end, 0, input.count()); });
}

NormJob norm_job(Address input, int64_t stride, int cols, Address weight, Address bias, float eps, int kind) {
  require(kind == 0 || kind == 1, "a norm is 0 (RMS) or 1 (layer)");
  require(stride >= cols, "rows overlap");
  NormJob job{};
  job.input = at<const float>(input);
  job.input_stride = stride;
  job.cols = cols;
  job.weight = at<const float>(weight);
  job.bias = at<const float>(bias);
  job.eps = eps;
  job.kind = static_cast<NormKind>(kind);
  return job;
}

void norm(Address input, int64_t stride, Address weight, Address bias, float eps, int kind, Rows& output) {
  const NormJob job = norm_job(input, stride, output.view().cols, weight, bias, eps, kind);
  divide(output.count(), [&](const Operators& ops, int begin, int end) { ops.norm(job, &output.view(), begin, end); });
}

void norm_rows(Address input, int64_t stride, int rows, int cols, Address weight, Address bias, float eps, int kind,
               Address output, int64_t output_stride) {
  require(output_stride >= cols, "rows overlap");
  const NormJob job = norm_job(input, stride, cols, weight, bias, eps, kind);
  divide(rows, [&](const Operators& ops, int begin, int end) {
    ops.norm_rows(job, at<float>(output), output_stride, begin, end);
  });
}

void embed(const Linear& weights, Address ids, int rows, float factor, Address output, int64_t stride) {
  require(stride >= weights.cols, "rows overlap");
  require(weights.layout != Layout::Q4_DITHERED, "a screen gives bounds, no rows");
  const int32_t* row_ids = at<const int32_t>(ids);
  for (int row = 0; row < rows; ++row)
    require(row_ids[row] >= 0 && row_ids[row] < weights.rows, "a token id outside the vocabulary");
  divide(rows, [&](const Operators& ops, int begin, int end) {
    ops.embed(weights, row_ids, factor, at<float>(output), stride, begin, end);
  });
}

void soft_cap(Address logits, int64_t stride, int rows, int cols, float cap) {
  require(stride >= cols && cap > 0, "a soft cap is positive, and rows do not overlap");
  divide(rows, [&](const Operators& ops, int begin, int end) {
    ops.soft_cap(at<float>(logits), stride, cols, cap, begin, end);
  });
}

}  // namespace

void bind_operators(nb::module_& module) {
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Rows>(module, "Rows", "Activations: addresses are 0 for forms that are not there.")
      .def(nb::init<int, int, uint32_t, int>(), "count"_a, "cols"_a, "forms"_a, "group"_a = 32)
      .def_prop_ro("count", &Rows::count)
      .def_prop_ro("cols", [](const Rows& self) { return self.view().cols; })
      .def_prop_ro("stride", [](const Rows& self) { return self.view().stride; })
      .def_prop_ro("group", [](const Rows& self) { return self.view().group; })
      .def_prop_ro("f32", [](const Rows& self) { return address_of(self.view().f32); })
      .def_prop_ro("bf16", [](const Rows& self) { return address_of(self.view().bf16); })
      .def_prop_ro("q8", [](const Rows& self) { return address_of(self.view().q8); })
      .def_prop_ro("scale", [](const Rows& self) { return address_of(self.view().scale); })
      .def_prop_ro("scaled_sum", [](const Rows& self) { return address_of(self.view().scaled_sum); })
      .def_prop_ro("sum", [](const Rows& self) { return address_of(self.view().sum); });
  module.def("convert", &convert, "input"_a, "stride"_a, "output"_a, "rows"_a = -1, Released(),
             "Float rows into every form of `output`.");
  module.def("linear", &linear, "weight"_a, "input"_a, "output"_a, "stride"_a, "factor"_a = 1.0f, "add"_a = false,
             "rows"_a = -1, Released(),
             "output [rows, weight.rows] = (add ? output : 0) + factor * (weight @ input + bias).");
  module.def("gated", &gated, "gate"_a, "up"_a.none(), "input"_a, "output"_a, "activation"_a, Released(),
             "activation(gate x) * (up x) into the forms of `output`; activation 0 silu, 1 gelu, 2 gelu_tanh, 3 none.");
  module.def("norm", &norm, "input"_a, "stride"_a, "weight"_a, "bias"_a, "eps"_a, "kind"_a, "output"_a, Released(),
             "Normalised rows in the forms of `output`; kind 0 RMS, 1 layer; weight 0: ones.");
  module.def("norm_rows", &norm_rows, "input"_a, "stride"_a, "rows"_a, "cols"_a, "weight"_a, "bias"_a, "eps"_a,
             "kind"_a, "output"_a, "output_stride"_a, Released(), "Normalised rows in float32; in place allowed.");
  module.def("embed", &embed, "table"_a, "ids"_a, "rows"_a, "factor"_a, "output"_a, "stride"_a, Released(),
             "Rows of a table of any layout by int32 ids.");
  module.def("soft_cap", &soft_cap, "logits"_a, "stride"_a, "rows"_a, "cols"_a, "cap"_a, Released(),
             "cap * tanh(x / cap), in place.");
}

}  // namespace inferloom
