// Int8 activations for AVX2: signed codes, |code| times activations that take the code's sign, so
// that the 16-bit sums of two products (at most 2 * 127 * 127) never saturate.
#if defined(__x86_64__)
#include "int8.h"

#include <cstring>
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))

namespace novamesh {
namespace {

constexpr bool kUnsigned = false;

struct Codes { __m256i even, odd, even_size, odd_size; };

TARGET inline Codes unpack(__m256i packed) {
  const __m256i codes = _mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodesInt8)));
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i even =
      _mm256_shuffle_epi8(codes, _mm256_and_si256(_mm256_srli_epi16(packed, 4), low));
  const __m256i odd = _mm256_shuffle_epi8(codes, _mm256_and_si256(packed, low));
  return {even, odd, _mm256_abs_epi8(even), _mm256_abs_epi8(odd)};
}

TARGET inline __m256i dot(const Codes& codes, const int8_t* q) {
  const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + 64));
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i a = _mm256_maddubs_epi16(codes.even_size, _mm256_sign_epi8(even, codes.even));
  const __m256i b = _mm256_maddubs_epi16(codes.odd_size, _mm256_sign_epi8(odd, codes.odd));
  return _mm256_add_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
}

}  // namespace
}  // namespace novamesh

#include "rows_int8_256.h"

namespace novamesh {
namespace {

TARGET inline __m128i eight(__m256i a, __m256i b) {  // sixteen int32 to int8, even ones first
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return _mm_shuffle_epi8(
      bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

TARGET inline float largest(__m256 v) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

TARGET inline int add_up(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

TARGET void quantize_block(const float* in, int8_t* out, float& scale, int32_t& offset) {
  const __m256 size = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 top = _mm256_setzero_ps();
  for (int i = 0; i < kBlock; i += 8)
    top = _mm256_max_ps(top, _mm256_and_ps(_mm256_loadu_ps(in + i), size));
  const float step = quantum(largest(top));
  const __m256 inverse = _mm256_set1_ps(step > 0.0f ? 1.0f / step : 0.0f);
  __m256i sum = _mm256_setzero_si256();
  for (int part = 0; part < 4; ++part) {
    const __m256i a =
        _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(in + 16 * part), inverse));
    const __m256i b =
        _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(in + 16 * part + 8), inverse));
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
    const __m128i bytes = eight(a, b);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 8 * part), bytes);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 64 + 8 * part), _mm_srli_si128(bytes, 8));
  }
  scale = step / 127.0f;
  offset = -128 * add_up(sum);
}

}  // namespace

void quantize_avx2(const float* x, int64_t width, int8_t* q, float* scale, int32_t* offset) {
  const int64_t blocks = width / kBlock;
  if (blocks % 2) std::memset(q + blocks / 2 * 128, 0, 128);
  for (int64_t b = blocks; b < quantized_scales(width); ++b) scale[b] = 0.0f, offset[b] = 0;
  for (int64_t b = 0; b < blocks; ++b)
    quantize_block(x + b * kBlock, q + b / 2 * 128 + b % 2 * 32, scale[b], offset[b]);
}

void rows_int8_avx2(const Quantized* x, float* const* out, int tokens, const uint8_t* weights,
                    const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  rows(x, out, tokens, weights, scales, first, count, width);
}

}  // namespace novamesh
#endif
