// The loops for AVX2 with FMA and F16C. A 16-entry table is two registers of eight and a blend.
#if defined(__x86_64__)
#include "int8.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))

namespace novamesh {
namespace {

struct Half { __m256 w[4]; };         // 32 weights, half a block: sixteen registers hold no more

TARGET inline Half load(const float* w) {
  return {{_mm256_loadu_ps(w), _mm256_loadu_ps(w + 8), _mm256_loadu_ps(w + 16),
           _mm256_loadu_ps(w + 24)}};
}

TARGET inline __m256 load_half(const uint16_t* w) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}

TARGET inline Half load(const uint16_t* w) {
  return {{load_half(w), load_half(w + 8), load_half(w + 16), load_half(w + 24)}};
}

TARGET inline __m256 look_up(__m256i index) {  // the low four bits of each index
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(kCodes), index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(kCodes + 8), index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

TARGET inline Half load(const uint8_t* bytes) {
  Half out;
  for (int part = 0; part < 2; ++part) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + 8 * part));
    const __m256i index = _mm256_cvtepu8_epi32(packed);
    out.w[part] = look_up(_mm256_srli_epi32(index, 4));
    out.w[2 + part] = look_up(index);
  }
  return out;
}

template <Kind kind>
TARGET inline Half load_half_block(const void* weights, int64_t at) {
  if constexpr (kind == kNf4) return load(static_cast<const uint8_t*>(weights) + at / 2);
  else if constexpr (kind == kFloat16) return load(static_cast<const uint16_t*>(weights) + at);
  else return load(static_cast<const float*>(weights) + at);
}

TARGET inline float add_up(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

template <Kind kind, int tokens>
TARGET void rows_of(const float* const* x, float* const* out, const void* weights,
                    const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  constexpr int64_t kHalf = kBlock / 2;
  const int64_t halves = width / kHalf;
  for (int64_t row = first; row < first + count; ++row) {
    __m256 sum[tokens];
    for (int t = 0; t < tokens; ++t) sum[t] = _mm256_setzero_ps();
    for (int64_t half = 0; half < halves; ++half) {
      const int64_t at = row * width + half * kHalf;
      const Half h = load_half_block<kind>(weights, at);
      __m256 scale = _mm256_set1_ps(1.0f);
      if constexpr (kind == kNf4) scale = _mm256_set1_ps(_cvtsh_ss(scales[at / kBlock]));
      for (int t = 0; t < tokens; ++t) {
        const float* in = x[t] + half * kHalf;
        __m256 part = _mm256_mul_ps(h.w[0], _mm256_loadu_ps(in));
        part = _mm256_fmadd_ps(h.w[1], _mm256_loadu_ps(in + 8), part);
        part = _mm256_fmadd_ps(h.w[2], _mm256_loadu_ps(in + 16), part);
        part = _mm256_fmadd_ps(h.w[3], _mm256_loadu_ps(in + 24), part);
        sum[t] = _mm256_fmadd_ps(part, scale, sum[t]);
      }
    }
    for (int t = 0; t < tokens; ++t) out[t][row] = add_up(sum[t]);
  }
}

template <Kind kind>
void rows(const float* const* x, float* const* out, int tokens, const void* weights,
          const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  using Fixed = void (*)(const float* const*, float* const*, const void*, const uint16_t*,
                         int64_t, int64_t, int64_t);
  static constexpr Fixed kByTokens[kTokensMax] = {
      rows_of<kind, 1>, rows_of<kind, 2>, rows_of<kind, 3>, rows_of<kind, 4>,
      rows_of<kind, 5>, rows_of<kind, 6>, rows_of<kind, 7>, rows_of<kind, 8>};
  kByTokens[tokens - 1](x, out, weights, scales, first, count, width);
}

TARGET float dot(const float* a, const float* b, int64_t count) {
  __m256 sum = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), sum);
  float total = add_up(sum);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

TARGET uint64_t read(const uint8_t* bytes, int64_t count) {
  const __m256i* from = reinterpret_cast<const __m256i*>(bytes);
  __m256i sum[8];
  for (int lane = 0; lane < 8; ++lane) sum[lane] = _mm256_setzero_si256();
  for (int64_t i = 0; i + 8 <= count / 32; i += 8)
    for (int lane = 0; lane < 8; ++lane)
      sum[lane] = _mm256_xor_si256(sum[lane], _mm256_loadu_si256(from + i + lane));
  for (int lane = 1; lane < 8; ++lane) sum[0] = _mm256_xor_si256(sum[0], sum[lane]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sum[0], 0));
}

}  // namespace

const Loops kAvx2 = {
    {rows<kFloat32>, rows<kFloat16>, rows<kNf4>}, rows_int8_avx2, nullptr, quantize_avx2, dot, read,
    &kAttentionAvx2};

}  // namespace novamesh
#endif
