#include "buffers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace inferloom {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Buffer::~Buffer() { release(); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

void Buffer::release() {
  std::free(data_);
  data_ = nullptr;
  bytes_ = 0;
}

void* Buffer::reserve(size_t bytes) {
  if (bytes <= bytes_) return data_;
  // Batches grow little by little while requests come in: a half more each time keeps the number of moves small.
  const size_t wanted = std::max(bytes, bytes_ + bytes_ / 2);
  release();
  const size_t unit = wanted >= kHugePage ? kHugePage : 64;
  const size_t size = rounded(wanted, unit);
  data_ = std::aligned_alloc(unit, size);
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  if (unit == kHugePage) madvise(data_, size, MADV_HUGEPAGE);  // advice: without it the pages are small
#endif
  std::memset(data_, 0, size);
  bytes_ = size;
  return data_;
}

void ActivationBuffer::reserve(int32_t rows) {
  if (rows <= rows_) return;
  rows_ = std::max(rows, rows_ + rows_ / 2);
  const Activations sizes = view(0);
  const size_t values = static_cast<size_t>(rows_) * static_cast<size_t>(sizes.stride);
  const size_t groups = static_cast<size_t>(rows_) * static_cast<size_t>(sizes.groups());
  const size_t sums = static_cast<size_t>(rows_) * static_cast<size_t>(sizes.sums());
  size_t bytes = 0;
  const auto add = [&](uint32_t form, size_t part) { bytes += forms_ & form ? rounded(part, 64) : 0; };
  add(kFloat, values * sizeof(float));
  add(kBfloat16, values * sizeof(uint16_t));
  add(kInt8, values);
  add(kInt8, groups * sizeof(float));
  for (int i = 0; i < 2; ++i) add(kInt8, sums * sizeof(float));
  memory_.reserve(bytes);
  // The buffer may be the same as before, where parts of other sizes lay: what lies past the columns must be zero.
  std::memset(memory_.at<void>(), 0, bytes);
}

Activations ActivationBuffer::view(uint32_t forms) const {
  Activations view;
  view.cols = cols_;
  view.stride = static_cast<int32_t>(rounded(static_cast<size_t>(cols_), 128));
  view.forms = forms & forms_;
  view.group = group_;
  const size_t values = static_cast<size_t>(rows_) * static_cast<size_t>(view.stride);
  const size_t groups = static_cast<size_t>(rows_) * static_cast<size_t>(view.groups());
  const size_t sums = static_cast<size_t>(rows_) * static_cast<size_t>(view.sums());
  uint8_t* next = memory_.at<uint8_t>();
  const auto part = [&](uint32_t form, size_t bytes) -> void* {
    if (!(forms_ & form)) return nullptr;
    uint8_t* here = next;
    next += rounded(bytes, 64);
    return forms & form ? here : nullptr;
  };
  view.f32 = static_cast<float*>(part(kFloat, values * sizeof(float)));
  view.bf16 = static_cast<uint16_t*>(part(kBfloat16, values * sizeof(uint16_t)));
  view.q8 = static_cast<int8_t*>(part(kInt8, values));
  view.scale = static_cast<float*>(part(kInt8, groups * sizeof(float)));
  view.scaled_sum = static_cast<float*>(part(kInt8, sums * sizeof(float)));
  view.sum = static_cast<int32_t*>(part(kInt8, sums * sizeof(int32_t)));
  return view;
}

}  // namespace inferloom
