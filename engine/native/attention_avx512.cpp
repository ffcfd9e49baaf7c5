// Attention for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

namespace novamesh {
namespace {

constexpr int kLanes = 16, kVectors = 3, kColumns = 8, kSums = 16;
using Reg = __m512;
struct Pair { Reg first, second; };

TARGET inline Reg all(float x) { return _mm512_set1_ps(x); }
TARGET inline Reg load(const float* at) { return _mm512_loadu_ps(at); }
TARGET inline void store(float* at, Reg x) { _mm512_storeu_ps(at, x); }
TARGET inline Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
TARGET inline Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
TARGET inline Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
TARGET inline Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
TARGET inline Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
TARGET inline Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }

TARGET inline Reg hide(Reg score, Reg key, Reg low, Reg high) {
  const __mmask16 seen =
      _mm512_cmp_ps_mask(low, key, _CMP_LT_OQ) & _mm512_cmp_ps_mask(key, high, _CMP_LE_OQ);
  return _mm512_mask_blend_ps(seen, all(-__builtin_inff()), score);
}

// Cephes' expf: x = n ln 2 + r, a polynomial for e^r, and n added to the exponent.
TARGET inline Reg exp(Reg x) {
  // Zero where the result would be subnormal, which costs a hundred cycles wherever it is used;
  // infinite beyond the other end; what is not a number stays.
  const __mmask16 normal = _mm512_cmp_ps_mask(x, all(-87.3f), _CMP_NLT_UQ);
  const Reg in = _mm512_min_ps(all(100.0f), max(all(-110.0f), x));
  const Reg n = _mm512_roundscale_ps(mul(in, all(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Reg r = _mm512_fnmadd_ps(n, all(-2.12194440e-4f),
                                 _mm512_fnmadd_ps(n, all(0.693359375f), in));
  Reg sum = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  sum = fma(sum, r, all(8.3334519073e-3f));
  sum = fma(sum, r, all(4.1665795894e-2f));
  sum = fma(sum, r, all(1.6666665459e-1f));
  sum = fma(sum, r, all(5.0000001201e-1f));
  sum = add(fma(sum, mul(r, r), r), all(1.0f));
  return _mm512_maskz_scalef_ps(normal, sum, n);
}

TARGET inline Reg load_plain(const float* at) { return load(at); }

TARGET inline Reg load_plain(const uint16_t* at) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

TARGET inline Reg load_plain(const int8_t* at) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

TARGET inline Pair load_pair(const float* at) { return {load(at), load(at + kLanes)}; }

TARGET inline Pair part_bfloat16(__m512i both) {
  const __m512i odd = _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), _mm512_castsi512_ps(odd)};
}

TARGET inline Pair load_pair(const uint16_t* at) { return part_bfloat16(_mm512_loadu_si512(at)); }

TARGET inline Pair load_pair(const int8_t* at) {
  return {load_plain(at), load_plain(at + kLanes)};
}

// The first `count` elements, and zeros: what lies behind a row is not touched.
TARGET inline Pair load_pair(const float* at, int64_t count) {
  const uint32_t mask = (1u << count) - 1;
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), at),
          _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), at + kLanes)};
}

TARGET inline Pair load_pair(const uint16_t* at, int64_t count) {
  return part_bfloat16(_mm512_maskz_loadu_epi16((1u << count) - 1, at));
}

TARGET inline Pair load_pair(const int8_t* at, int64_t count) {
  const __m256i bytes = _mm256_maskz_loadu_epi8((1u << count) - 1, at);
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes))),
          _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)))};
}

// Within each 128-bit lane: x[4 g + j] gets column j of rows x[4 g] .. x[4 g + 3].
TARGET inline void transpose_lanes(Reg (&x)[kLanes]) {
  for (int g = 0; g < kLanes; g += 4) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[g], x[g + 1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(x[g], x[g + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(x[g + 2], x[g + 3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(x[g + 2], x[g + 3]));
    x[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    x[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    x[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    x[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
}

TARGET inline Reg even_lanes(Reg a, Reg b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
TARGET inline Reg odd_lanes(Reg a, Reg b) { return _mm512_shuffle_f32x4(a, b, 0xdd); }

TARGET inline void transpose(Reg (&x)[kLanes]) {
  transpose_lanes(x);
  for (int j = 0; j < 4; ++j) {       // then the 128-bit lanes of x[j], x[4 + j], ...
    const Reg a = even_lanes(x[j], x[4 + j]), b = odd_lanes(x[j], x[4 + j]);
    const Reg c = even_lanes(x[8 + j], x[12 + j]), d = odd_lanes(x[8 + j], x[12 + j]);
    x[j] = even_lanes(a, c);
    x[4 + j] = even_lanes(b, d);
    x[8 + j] = odd_lanes(a, c);
    x[12 + j] = odd_lanes(b, d);
  }
}

// Sums of two registers in one: lanes of a and b by turns, halved.
TARGET inline Reg fold(Reg a, Reg b) {
  return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

TARGET inline Reg fold_twice(Reg a, Reg b) {
  const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

TARGET inline Reg fold_lanes(Reg a, Reg b) { return add(even_lanes(a, b), odd_lanes(a, b)); }

TARGET inline Reg sums(const Reg (&x)[kLanes]) {  // lane i: the sum of the lanes of x[i]
  Reg four[4];
  for (int g = 0; g < 4; ++g)
    four[g] = fold_twice(fold(x[4 * g], x[4 * g + 1]), fold(x[4 * g + 2], x[4 * g + 3]));
  return fold_lanes(fold_lanes(four[0], four[1]), fold_lanes(four[2], four[3]));
}

}  // namespace
}  // namespace novamesh

#include "attention_panels.h"

namespace novamesh {
const AttentionLoops kAttentionAvx512 = kLoops;
}  // namespace novamesh
#endif
