// What Q8_HALVES adds to a column's numbers before it cuts them into halves (layouts.md): 0 … 15, the upper bits of splitmix64 at the
// column's number. inferloom/formats/dither.py has the same.
#pragma once
#include <cstdint>

namespace inferloom {

constexpr int kMostDithered = 8192;  // columns of a matrix

struct Dither {
  int8_t of[kMostDithered];
};

constexpr Dither make_dither() {
  Dither dither{};
  for (uint64_t column = 0; column < kMostDithered; ++column) {
    uint64_t z = (column + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    dither.of[column] = static_cast<int8_t>((z ^ (z >> 31)) >> 60);
  }
  return dither;
}

static constexpr Dither kDither = make_dither();

// A weight is scale · (byte − kHalvesBias − dither).
constexpr int kHalvesBias = 120;

}  // namespace inferloom
