// Attention in plain C++ with the compiler's own vectors of four, which every CPU's registers hold.
#include <cstdint>
#include <cstring>

#define TARGET

namespace novamesh {
namespace {

constexpr int kLanes = 4, kVectors = 2, kColumns = 4, kSums = 8;
using Reg = float __attribute__((vector_size(16)));
using Bits = uint32_t __attribute__((vector_size(16)));
struct Pair { Reg first, second; };

inline Reg all(float x) { return Reg{x, x, x, x}; }
inline Reg load(const float* at) { Reg x; std::memcpy(&x, at, sizeof x); return x; }
inline void store(float* at, Reg x) { std::memcpy(at, &x, sizeof x); }
inline Reg add(Reg a, Reg b) { return a + b; }
inline Reg sub(Reg a, Reg b) { return a - b; }
inline Reg mul(Reg a, Reg b) { return a * b; }
inline Reg div(Reg a, Reg b) { return a / b; }
inline Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
inline Reg max(Reg a, Reg b) { return a > b ? a : b; }

inline Reg hide(Reg score, Reg key, Reg low, Reg high) {
  const Reg hidden = all(-__builtin_inff());
  const Reg seen = key <= high ? score : hidden;
  return low < key ? seen : hidden;
}

// Cephes' expf: x = n ln 2 + r, a polynomial for e^r, and n added to the exponent.
inline Reg exp(Reg x) {
  const Reg least = all(-87.3f), most = all(88.3f), rounder = all(12582912.0f);
  Reg in = x < least ? least : x;     // what is not a number stays
  in = in > most ? most : in;
  const Reg shifted = in * all(1.44269504f) + rounder, n = shifted - rounder;
  const Reg r = (in - n * all(0.693359375f)) - n * all(-2.12194440e-4f);
  Reg sum = all(1.9875691500e-4f) * r + all(1.3981999507e-3f);
  sum = sum * r + all(8.3334519073e-3f);
  sum = sum * r + all(4.1665795894e-2f);
  sum = sum * r + all(1.6666665459e-1f);
  sum = sum * r + all(5.0000001201e-1f);
  sum = (sum * (r * r) + r) + all(1.0f);
  const Bits power = ((Bits)shifted << 23) + 0x3f800000u;
  return x < least ? all(0.0f) : sum * (Reg)power;
}

inline Reg load_plain(const float* at) { return load(at); }

inline Reg load_plain(const uint16_t* at) {
  const Bits wide = {at[0], at[1], at[2], at[3]};
  return (Reg)(wide << 16);
}

inline Reg load_plain(const int8_t* at) {
  return Reg{static_cast<float>(at[0]), static_cast<float>(at[1]), static_cast<float>(at[2]),
             static_cast<float>(at[3])};
}

template <typename T>
inline Pair load_pair(const T* at) { return {load_plain(at), load_plain(at + kLanes)}; }

inline Pair load_pair(const uint16_t* at) {
  uint32_t words[kLanes];             // an even element is the low half, on either byte order
  for (int i = 0; i < kLanes; ++i)
    words[i] = at[2 * i] | static_cast<uint32_t>(at[2 * i + 1]) << 16;
  Bits both;
  std::memcpy(&both, words, sizeof both);
  return {(Reg)(both << 16), (Reg)(both & 0xffff0000u)};
}

template <typename T>
inline Pair load_pair(const T* at, int64_t count) {
  T padded[2 * kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = at[i];
  return load_pair(padded);
}

inline void transpose(Reg (&x)[kLanes]) {
  const Reg a = x[0], b = x[1], c = x[2], d = x[3];
  for (int i = 0; i < kLanes; ++i) x[i] = Reg{a[i], b[i], c[i], d[i]};
}

inline Reg sums(const Reg (&x)[kLanes]) {  // lane i: the sum of the lanes of x[i]
  Reg turned[kLanes] = {x[0], x[1], x[2], x[3]};
  transpose(turned);
  return (turned[0] + turned[1]) + (turned[2] + turned[3]);
}

}  // namespace
}  // namespace novamesh

#include "attention_panels.h"

namespace novamesh {
const AttentionLoops kAttentionScalar = kLoops;
}  // namespace novamesh
