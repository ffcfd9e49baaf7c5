// Attention for AVX2 with FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define TARGET __attribute__((target("avx2,fma,f16c")))

namespace novamesh {
namespace {

constexpr int kLanes = 8, kVectors = 3, kColumns = 4, kSums = 8;
using Reg = __m256;
struct Pair { Reg first, second; };

TARGET inline Reg all(float x) { return _mm256_set1_ps(x); }
TARGET inline Reg load(const float* at) { return _mm256_loadu_ps(at); }
TARGET inline void store(float* at, Reg x) { _mm256_storeu_ps(at, x); }
TARGET inline Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
TARGET inline Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
TARGET inline Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
TARGET inline Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
TARGET inline Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
TARGET inline Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }

TARGET inline Reg hide(Reg score, Reg key, Reg low, Reg high) {
  const Reg seen = _mm256_and_ps(_mm256_cmp_ps(low, key, _CMP_LT_OQ),
                                 _mm256_cmp_ps(key, high, _CMP_LE_OQ));
  return _mm256_blendv_ps(all(-__builtin_inff()), score, seen);
}

// Cephes' expf: x = n ln 2 + r, a polynomial for e^r, and n added to the exponent.
TARGET inline Reg exp(Reg x) {
  const Reg least = all(-87.3f);
  const Reg in = _mm256_min_ps(all(88.3f), max(least, x));  // what is not a number stays
  const Reg n = _mm256_round_ps(mul(in, all(1.44269504f)),
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Reg r = _mm256_fnmadd_ps(n, all(-2.12194440e-4f),
                                 _mm256_fnmadd_ps(n, all(0.693359375f), in));
  Reg sum = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  sum = fma(sum, r, all(8.3334519073e-3f));
  sum = fma(sum, r, all(4.1665795894e-2f));
  sum = fma(sum, r, all(1.6666665459e-1f));
  sum = fma(sum, r, all(5.0000001201e-1f));
  sum = add(fma(sum, mul(r, r), r), all(1.0f));
  const __m256i power = _mm256_add_epi32(_mm256_slli_epi32(_mm256_cvtps_epi32(n), 23),
                                         _mm256_set1_epi32(0x3f800000));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ),
                          mul(sum, _mm256_castsi256_ps(power)));
}

TARGET inline Reg load_plain(const float* at) { return load(at); }

TARGET inline Reg load_plain(const uint16_t* at) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

TARGET inline Reg load_plain(const int8_t* at) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

template <typename T>
TARGET inline Pair load_pair(const T* at) { return {load_plain(at), load_plain(at + kLanes)}; }

TARGET inline Pair load_pair(const uint16_t* at) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  const __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), _mm256_castsi256_ps(odd)};
}

template <typename T>
TARGET inline Pair load_pair(const T* at, int64_t count) {
  T padded[2 * kLanes] = {};
  std::memcpy(padded, at, sizeof(T) * count);
  return load_pair(padded);
}

// Within each 128-bit lane: x[4 g + j] gets column j of rows x[4 g] .. x[4 g + 3].
TARGET inline void transpose_lanes(Reg (&x)[kLanes]) {
  for (int g = 0; g < kLanes; g += 4) {
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[g], x[g + 1]));
    const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(x[g], x[g + 1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(x[g + 2], x[g + 3]));
    const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(x[g + 2], x[g + 3]));
    x[g] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    x[g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    x[g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    x[g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
}

TARGET inline void transpose(Reg (&x)[kLanes]) {
  transpose_lanes(x);
  for (int j = 0; j < 4; ++j) {
    const Reg low = x[j], high = x[4 + j];
    x[j] = _mm256_permute2f128_ps(low, high, 0x20);
    x[4 + j] = _mm256_permute2f128_ps(low, high, 0x31);
  }
}

// Sums of two registers in one: lanes of a and b by turns, halved.
TARGET inline Reg fold(Reg a, Reg b) {
  return add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}

TARGET inline Reg fold_twice(Reg a, Reg b) {
  const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
  return add(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
             _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
}

TARGET inline Reg sums(const Reg (&x)[kLanes]) {  // lane i: the sum of the lanes of x[i]
  const Reg low = fold_twice(fold(x[0], x[1]), fold(x[2], x[3]));
  const Reg high = fold_twice(fold(x[4], x[5]), fold(x[6], x[7]));
  return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

}  // namespace
}  // namespace novamesh

#include "attention_panels.h"

namespace novamesh {
const AttentionLoops kAttentionAvx2 = kLoops;
}  // namespace novamesh
#endif
