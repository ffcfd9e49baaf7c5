// What the instruction-set files give to the C interface: three loops, each in one table per set.
//
// Rules of all implementations: float32 arithmetic; the sum of a row and a token is taken in one
// order that does not depend on how many tokens share the call, so that a token's result never
// depends on its neighbours. Sets may differ from each other in the last bits.
#pragma once

#include <cstdint>

namespace novamesh {

constexpr int64_t kBlock = 64;        // weights a scale, and the unit of every width
constexpr int kTokensMax = 8;         // tokens that share one pass over a row
enum Kind : int32_t { kFloat32 = 0, kFloat16 = 1, kNf4 = 2 };

extern const float kCodes[16];        // NF4, ascending

// Rows of a matrix times up to kTokensMax tokens: out[t][first + r] = row r . x[t].
// NF4 reads x in groups of 32: 16 even elements, then the 16 odd ones, as bytes pack them.
using Rows = void (*)(const float* const* x, float* const* out, int tokens, const void* weights,
                      const uint16_t* scales, int64_t first, int64_t rows, int64_t width);
using Dot = float (*)(const float* a, const float* b, int64_t count);
using AddScaled = void (*)(float* sum, float factor, const float* x, int64_t count);

struct Set {
  const char* name;
  Rows rows[3];                       // by Kind
  Dot dot;
  AddScaled add_scaled;
};

extern const Set kScalar;
#if defined(__x86_64__)
extern const Set kAvx2;
extern const Set kAvx512;
#endif

inline float widen(uint16_t half) {   // IEEE binary16 to binary32, subnormals included
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = half & 0x7fffu;
  union { uint32_t bits; float value; } out{};
  if (rest >= 0x7c00u) {
    out.bits = 0x7f800000u | (rest << 13);
  } else if (rest >= 0x0400u) {
    out.bits = (rest << 13) + (112u << 23);
  } else {
    out.value = static_cast<float>(rest) * 0x1p-24f;
  }
  out.bits |= sign;
  return out.value;
}

}  // namespace novamesh
