// `Decoder` for Python: weights and tables as addresses, a batch as plain lists of integers, which are read here faster
// than numpy would make arrays of them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "decoder.h"
#include "dither.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace inferloom {

namespace {

template <class T>
const T* pointer(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

int32_t integer(PyObject* value) {
  const long number = PyLong_AsLong(value);
  if (number == -1 && PyErr_Occurred()) throw nb::python_error();
  if (number < INT32_MIN || number > INT32_MAX) throw std::invalid_argument("a number of a batch does not fit 32 bits");
  return static_cast<int32_t>(number);
}

void append(std::vector<int32_t>& to, PyObject* list) {
  if (!PyList_Check(list)) throw nb::type_error("a batch is made of lists of integers");
  const Py_ssize_t count = PyList_Size(list);
  for (Py_ssize_t i = 0; i < count; ++i) to.push_back(integer(PyList_GetItem(list, i)));
}

void assign(std::vector<int32_t>& to, PyObject* list) {
  to.clear();
  append(to, list);
}

// A decoder, and the batch that its steps reuse.
class StepDecoder {
 public:
  StepDecoder(const DecoderSpec& spec, const DecoderWeights& weights, int threads)
      : decoder(operators(best_isa()), spec, weights, threads) {}

  void step(nb::list token_ids, nb::list starts, nb::list context_lens, nb::list page_tables, nb::list logit_rows,
            uintptr_t logits) {
    read(token_ids, starts, context_lens, page_tables, logit_rows);
    nb::gil_scoped_release release;
    decoder.step(batch_, reinterpret_cast<float*>(logits));
  }

  // A list of its own: what torch and numpy need for a slice is not in the cache after a step, and takes as long as a layer.
  nb::list best(nb::list token_ids, nb::list starts, nb::list context_lens, nb::list page_tables, nb::list logit_rows,
                uintptr_t scratch) {
    read(token_ids, starts, context_lens, page_tables, logit_rows);
    best_.resize(static_cast<size_t>(batch_.wanted()));
    {
      nb::gil_scoped_release release;
      decoder.step(batch_, reinterpret_cast<float*>(scratch), best_.data());
    }
    nb::list found;
    for (const int32_t id : best_) found.append(id);
    return found;
  }

  nb::dict profile() const {
    nb::dict stages;
    for (int stage = 0; stage < kStages; ++stage) {
      nb::list threads;
      for (const Profile::Times& times : decoder.profile.threads) {
        threads.append(static_cast<double>(times.nanoseconds[static_cast<size_t>(stage)]) * 1e-3);
      }
      stages[kStageNames[stage]] = threads;
    }
    return stages;
  }

  Decoder decoder;

 private:
  void read(const nb::list& token_ids, const nb::list& starts, const nb::list& context_lens, const nb::list& page_tables,
            const nb::list& logit_rows) {
    assign(batch_.token_ids, token_ids.ptr());
    assign(batch_.starts, starts.ptr());
    assign(batch_.context_lens, context_lens.ptr());
    assign(batch_.logit_rows, logit_rows.ptr());
    batch_.page_tables.clear();
    batch_.page_starts.assign(1, 0);
    for (nb::handle table : page_tables) {
      append(batch_.page_tables, table.ptr());
      batch_.page_starts.push_back(static_cast<int32_t>(batch_.page_tables.size()));
    }
  }

  StepBatch batch_;
  std::vector<int32_t> best_;
};

template <class Struct>
using Floats = const float* Struct::*;

// An attribute that takes an address; 0 is null.
template <Floats<DecoderLayer> member>
void set_floats(DecoderLayer& layer, uintptr_t address) {
  layer.*member = pointer<float>(address);
}

}  // namespace

void bind_decoder(nb::module_& module) {
  nb::class_<Linear>(module, "Linear", "A weight matrix at an address, in a layout of csrc/layouts.md.")
      .def("__init__",
           [](Linear* self, int layout, int rows, int cols, uintptr_t data, uintptr_t bias) {
             if (layout < 0 || layout >= kLayouts) {
               throw std::invalid_argument("there is no such layout");
             }
             const bool dithered = static_cast<Layout>(layout) == Layout::Q8_HALVES || static_cast<Layout>(layout) == Layout::Q4_DITHERED;
             if (dithered && cols > kMostDithered) {
               throw std::invalid_argument("a matrix in Q8_HALVES or Q4_DITHERED has at most " + std::to_string(kMostDithered) + " columns");
             }
             new (self) Linear{static_cast<Layout>(layout), rows, cols, pointer<void>(data), pointer<float>(bias)};
           },
           "layout"_a, "rows"_a, "cols"_a, "data"_a, "bias"_a = 0)
      .def_ro("rows", &Linear::rows)
      .def_ro("cols", &Linear::cols);

  nb::class_<Norm>(module, "Norm", "Weight and bias, float32 [hidden_size]; address 0: ones, and none.")
      .def("__init__",
           [](Norm* self, uintptr_t weight, uintptr_t bias) {
             new (self) Norm{true, pointer<float>(weight), pointer<float>(bias)};
           },
           "weight"_a, "bias"_a = 0);

  nb::class_<DecoderSpec> spec(module, "DecoderSpec", "Sizes and constants of a decoder (csrc/decoder.h).");
  spec.def(nb::init<>())
      .def_rw("vocab_size", &DecoderSpec::vocab_size)
      .def_rw("hidden_size", &DecoderSpec::hidden_size)
      .def_rw("intermediate_size", &DecoderSpec::intermediate_size)
      .def_rw("heads", &DecoderSpec::heads)
      .def_rw("kv_heads", &DecoderSpec::kv_heads)
      .def_rw("head_dim", &DecoderSpec::head_dim)
      .def_rw("norm_eps", &DecoderSpec::norm_eps)
      .def_rw("attention_scale", &DecoderSpec::attention_scale)
      .def_rw("attention_soft_cap", &DecoderSpec::attention_soft_cap)
      .def_rw("embedding_factor", &DecoderSpec::embedding_factor)
      .def_rw("residual_factor", &DecoderSpec::residual_factor)
      .def_rw("logit_factor", &DecoderSpec::logit_factor)
      .def_rw("logit_soft_cap", &DecoderSpec::logit_soft_cap)
      .def_rw("norm_whole_rows", &DecoderSpec::norm_whole_rows)
      .def_rw("parallel_residual", &DecoderSpec::parallel_residual)
      .def_rw("int8_group", &DecoderSpec::int8_group)
      .def_prop_rw("int8_kv", [](const DecoderSpec& self) { return self.kv_type == KvType::INT8; },
                   [](DecoderSpec& self, bool int8) { self.kv_type = int8 ? KvType::INT8 : KvType::BF16; })
      .def_prop_rw("layer_norm", [](const DecoderSpec& self) { return self.norm_kind == NormKind::LAYER; },
                   [](DecoderSpec& self, bool layer) { self.norm_kind = layer ? NormKind::LAYER : NormKind::RMS; })
      .def_prop_rw("activation", [](const DecoderSpec& self) { return static_cast<int>(self.activation); },
                   [](DecoderSpec& self, int activation) {
                     if (activation < 0 || activation > static_cast<int>(Activation::NONE)) {
                       throw std::invalid_argument("there is no such activation");
                     }
                     self.activation = static_cast<Activation>(activation);
                   });

  nb::class_<DecoderLayer>(module, "DecoderLayer", "Weights of a layer; what is not set is not there.")
      .def(nb::init<>())
      .def_rw("input_norm", &DecoderLayer::input_norm)
      .def_rw("attention_out_norm", &DecoderLayer::attention_out_norm)
      .def_rw("mlp_norm", &DecoderLayer::mlp_norm)
      .def_rw("mlp_out_norm", &DecoderLayer::mlp_out_norm)
      .def_rw("q", &DecoderLayer::q)
      .def_rw("k", &DecoderLayer::k)
      .def_rw("v", &DecoderLayer::v)
      .def_rw("o", &DecoderLayer::o)
      .def_rw("gate", &DecoderLayer::gate)
      .def_rw("up", &DecoderLayer::up)
      .def_rw("down", &DecoderLayer::down)
      .def_rw("window", &DecoderLayer::window)
      .def_rw("rope", &DecoderLayer::rope)
      .def("set_q_norm", &set_floats<&DecoderLayer::q_norm>)
      .def("set_k_norm", &set_floats<&DecoderLayer::k_norm>)
      .def("set_sinks", &set_floats<&DecoderLayer::sinks>);

  nb::class_<DecoderWeights>(module, "DecoderWeights", "All weights of a decoder.")
      .def(nb::init<>())
      .def_rw("embedding", &DecoderWeights::embedding)
      .def_rw("positions", &DecoderWeights::positions)
      .def_rw("norm", &DecoderWeights::norm)
      .def_rw("head", &DecoderWeights::head)
      .def_rw("screen", &DecoderWeights::screen)
      .def("add_layer", [](DecoderWeights& self, const DecoderLayer& layer) { self.layers.push_back(layer); });

  nb::class_<StepDecoder>(module, "Decoder",
                          "A whole step of a decoder in one call. Not thread-safe; keeps the addresses it is given.")
      .def(nb::init<const DecoderSpec&, const DecoderWeights&, int>(), "spec"_a, "weights"_a, "threads"_a)
      .def_prop_ro("isa", [](const StepDecoder& self) { return std::string(self.decoder.isa()); })
      .def_prop_ro("threads", [](const StepDecoder& self) { return self.decoder.threads(); })
      .def_prop_ro("kv_bytes_per_page", [](const StepDecoder& self) { return self.decoder.kv_bytes_per_page(); })
      .def_prop_ro("scratch_bytes", [](const StepDecoder& self) { return self.decoder.scratch_bytes(); })
      .def_prop_ro("computed_share", [](const StepDecoder& self) { return self.decoder.computed_share(); })
      .def("set_kv",
           [](StepDecoder& self, uintptr_t pool, int pages) {
             self.decoder.set_kv(reinterpret_cast<uint8_t*>(pool), pages);
           },
           "pool"_a, "pages"_a)
      .def("set_rope",
           [](StepDecoder& self, int table, uintptr_t cos_sin, int positions, int rotary) {
             self.decoder.set_rope(table, pointer<float>(cos_sin), positions, rotary);
           },
           "table"_a, "cos_sin"_a, "positions"_a, "rotary"_a)
      .def("step", &StepDecoder::step, "token_ids"_a, "starts"_a, "context_lens"_a, "page_tables"_a, "logit_rows"_a, "logits"_a,
           "Writes float32 logits [len(logit_rows), vocab_size] to the address `logits`.")
      .def("best", &StepDecoder::best, "token_ids"_a, "starts"_a, "context_lens"_a, "page_tables"_a, "logit_rows"_a, "scratch"_a,
           "The id of each row's greatest logit; -1 where it is no distribution. `scratch`: room as for logits.")
      .def_prop_rw("profiled", [](const StepDecoder& self) { return self.decoder.profile.enabled; },
                   [](StepDecoder& self, bool enabled) {
                     self.decoder.profile.clear();
                     self.decoder.profile.enabled = enabled;
                   })
      .def_prop_ro("profiled_steps", [](const StepDecoder& self) { return self.decoder.profile.steps; })
      .def("profile", &StepDecoder::profile, "Microseconds of the profiled steps: stage to one number a thread.");
}

}  // namespace inferloom
