// Sampling for Python: addresses in, tokens out; one call for all rows of a step.
#include "sampling.h"

#include <vector>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace inferloom {

namespace {

// Columns of numpy arrays, one entry a draw; the sizes were made equal by the caller.
void sample_rows(Address logits, int64_t stride, int vocab, Address rows, Address temperatures, Address top_ks,
                 Address top_ps, Address min_ps, Address dice, int count, Address tokens) {
  require(vocab > 0 && stride >= vocab && count >= 0, "rows of logits overlap, or there is nothing to sample");
  std::vector<Draw> draws(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i)
    draws[static_cast<size_t>(i)] = {at<const int64_t>(rows)[i], at<const double>(top_ps)[i],
                                     at<const double>(dice)[i],  at<const float>(temperatures)[i],
                                     at<const float>(min_ps)[i], at<const int32_t>(top_ks)[i]};
  sample(table(), at<const float>(logits), stride, vocab, draws.data(), count, at<int32_t>(tokens), threads_for(count));
}

void score_rows(Address logits, int64_t stride, int vocab, Address rows, Address tokens, int count, int best,
                Address chosen, Address ids, Address values) {
  require(vocab > 0 && stride >= vocab && best <= vocab, "more tokens are asked for than the vocabulary has");
  for (int i = 0; i < count; ++i)
    require(at<const int32_t>(tokens)[i] >= 0 && at<const int32_t>(tokens)[i] < vocab,
            "a token id outside the vocabulary");
  log_probabilities(table(), at<const float>(logits), stride, vocab, at<const int64_t>(rows), at<const int32_t>(tokens),
                    count, best, at<float>(chosen), at<int32_t>(ids), at<float>(values), threads_for(count));
}

}  // namespace

void bind_sampling(nb::module_& module) {
  using Released = nb::call_guard<nb::gil_scoped_release>;
  module.def("sample", &sample_rows, "logits"_a, "stride"_a, "vocab"_a, "rows"_a, "temperatures"_a, "top_ks"_a,
             "top_ps"_a, "min_ps"_a, "dice"_a, "count"_a, "tokens"_a, Released(),
             "tokens (int32) of draws from rows (int64) of float32 logits, which are not changed: temperatures and "
             "min_ps float32, top_ks int32 (0: off), top_ps and dice float64. −1: the row is no distribution.");
  module.def("log_probabilities", &score_rows, "logits"_a, "stride"_a, "vocab"_a, "rows"_a, "tokens"_a, "count"_a,
             "best"_a, "chosen"_a, "ids"_a, "values"_a, Released(),
             "chosen (float32): the natural log probability of tokens (int32) in rows (int64); ids (int32) and values "
             "(float32) [count, best]: the likeliest, best first.");
}

}  // namespace inferloom
