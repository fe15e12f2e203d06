// What is added to a column's numbers before they are cut to four bits (layouts.md): 0 … 255 sixteenths, the upper bits of splitmix64 at
// the column's number. Q8_HALVES, whose numbers are whole, takes the whole steps of it. inferloom/formats/dither.py has the same.
#pragma once
#include <cstdint>

namespace inferloom {

constexpr int kMostDithered = 8192;  // columns of a matrix

struct Dither {
  uint8_t sixteenths[kMostDithered];
  // Of that the steps, 0 … 15. Not shifted where they are used: GCC 12 miscompiles sums of q · ((byte >> 4) − 8) for VNNI, whose products want one
  // factor unsigned.
  int8_t whole[kMostDithered];
};

constexpr Dither make_dither() {
  Dither dither{};
  for (uint64_t column = 0; column < kMostDithered; ++column) {
    uint64_t z = (column + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    dither.sixteenths[column] = static_cast<uint8_t>(z >> 56);
    dither.whole[column] = static_cast<int8_t>(z >> 60);
  }
  return dither;
}

static constexpr Dither kDither = make_dither();

// What makes a number positive before the dither is added: a weight of Q8_HALVES is scale · (byte − kDitherBias − whole dither).
constexpr int kDitherBias = 120;

}  // namespace inferloom
