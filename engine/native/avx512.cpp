// The loops for AVX-512 (F, BW, DQ, VL). One register is a 16-entry table: a nibble is one permute.
#if defined(__x86_64__)
#include "int8.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

namespace novamesh {
namespace {

struct Block { __m512 w[4]; };        // 64 weights

TARGET inline Block load(const float* w) {
  return {{_mm512_loadu_ps(w), _mm512_loadu_ps(w + 16), _mm512_loadu_ps(w + 32),
           _mm512_loadu_ps(w + 48)}};
}

TARGET inline __m512 load_half(const uint16_t* w) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}

TARGET inline Block load(const uint16_t* w) {
  return {{load_half(w), load_half(w + 16), load_half(w + 32), load_half(w + 48)}};
}

TARGET inline Block load(const uint8_t* bytes) {
  const __m512 codes = _mm512_loadu_ps(kCodes);
  Block out;
  for (int half = 0; half < 2; ++half) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + half);
    const __m512i index = _mm512_cvtepu8_epi32(packed);
    // The permute reads the low four bits of an index only, so the low nibble needs no mask.
    out.w[2 * half] = _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), codes);
    out.w[2 * half + 1] = _mm512_permutexvar_ps(index, codes);
  }
  return out;
}

template <Kind kind>
TARGET inline Block load_block(const void* weights, int64_t at) {
  if constexpr (kind == kNf4) return load(static_cast<const uint8_t*>(weights) + at / 2);
  else if constexpr (kind == kFloat16) return load(static_cast<const uint16_t*>(weights) + at);
  else return load(static_cast<const float*>(weights) + at);
}

template <Kind kind, int tokens>
TARGET void rows_of(const float* const* x, float* const* out, const void* weights,
                    const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  const int64_t blocks = width / kBlock;
  for (int64_t row = first; row < first + count; ++row) {
    __m512 sum[tokens];
    for (int t = 0; t < tokens; ++t) sum[t] = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = row * width + block * kBlock;
      const Block b = load_block<kind>(weights, at);
      __m512 scale = _mm512_set1_ps(1.0f);
      if constexpr (kind == kNf4) scale = _mm512_set1_ps(_cvtsh_ss(scales[at / kBlock]));
      for (int t = 0; t < tokens; ++t) {
        const float* in = x[t] + block * kBlock;
        __m512 part = _mm512_mul_ps(b.w[0], _mm512_loadu_ps(in));
        part = _mm512_fmadd_ps(b.w[1], _mm512_loadu_ps(in + 16), part);
        part = _mm512_fmadd_ps(b.w[2], _mm512_loadu_ps(in + 32), part);
        part = _mm512_fmadd_ps(b.w[3], _mm512_loadu_ps(in + 48), part);
        sum[t] = _mm512_fmadd_ps(part, scale, sum[t]);
      }
    }
    for (int t = 0; t < tokens; ++t) out[t][row] = _mm512_reduce_add_ps(sum[t]);
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
  __m512 sum = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sum);
  float total = _mm512_reduce_add_ps(sum);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

TARGET uint64_t read(const uint8_t* bytes, int64_t count) {
  const __m512i* from = reinterpret_cast<const __m512i*>(bytes);
  __m512i sum[8];
  for (int lane = 0; lane < 8; ++lane) sum[lane] = _mm512_setzero_si512();
  for (int64_t i = 0; i + 8 <= count / 64; i += 8)
    for (int lane = 0; lane < 8; ++lane)
      sum[lane] = _mm512_xor_si512(sum[lane], _mm512_loadu_si512(from + i + lane));
  for (int lane = 1; lane < 8; ++lane) sum[0] = _mm512_xor_si512(sum[0], sum[lane]);
  uint64_t lanes[8], all = 0;
  _mm512_storeu_si512(lanes, sum[0]);
  for (const uint64_t lane : lanes) all ^= lane;
  return all;
}

}  // namespace

// Without VNNI the 256-bit loops are as good: there is no 512-bit sign.
const Loops kAvx512 = {
    {rows<kFloat32>, rows<kFloat16>, rows<kNf4>}, rows_int8_avx2, nullptr, quantize_avx2, dot, read,
    &kAttentionAvx512};

}  // namespace novamesh
#endif
