// Memory that a decoder computes in: grows by need, never shrinks, begins at multiples of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "activations.h"

namespace inferloom {

// Fresh memory is zero; what was in it is lost when it grows. Large buffers ask for huge pages.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least that many bytes. Throws std::bad_alloc.
  void* reserve(size_t bytes);

  template <class T>
  T* reserve_of(size_t count) {
    return static_cast<T*>(reserve(count * sizeof(T)));
  }
  template <class T>
  T* at() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void release();

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Rows of activations in several forms.
class ActivationBuffer {
 public:
  // `forms`: all that any reader will ask for.
  ActivationBuffer(int32_t cols, uint32_t forms, int32_t group) : cols_(cols), forms_(forms), group_(group) {}

  void reserve(int32_t rows);
  // The same memory with some of the forms.
  Activations view(uint32_t forms) const;
  size_t bytes() const { return memory_.bytes(); }

 private:
  int32_t cols_;
  uint32_t forms_;
  int32_t group_;
  int32_t rows_ = 0;
  Buffer memory_;
};

}  // namespace inferloom
