// Int8 activations for CPUs with AVX-VNNI and no AVX-512: codes with 128 added, because vpdpbusd
// takes unsigned times signed bytes.
#if defined(__x86_64__)
#include "int8.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))

namespace novamesh {
namespace {

constexpr bool kUnsigned = true;

struct Codes { __m256i even, odd; };

TARGET inline Codes unpack(__m256i packed) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodesInt8));
  const __m256i codes = _mm256_broadcastsi128_si256(_mm_xor_si128(table, _mm_set1_epi8(-128)));
  const __m256i low = _mm256_set1_epi8(15);
  return {_mm256_shuffle_epi8(codes, _mm256_and_si256(_mm256_srli_epi16(packed, 4), low)),
          _mm256_shuffle_epi8(codes, _mm256_and_si256(packed, low))};
}

TARGET inline __m256i dot(const Codes& codes, const int8_t* q) {
  const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
  const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + 64));
  const __m256i sum = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), codes.even, even);
  return _mm256_dpbusd_avx_epi32(sum, codes.odd, odd);
}

}  // namespace
}  // namespace novamesh

#include "rows_int8_256.h"

namespace novamesh {

void rows_int8_avxvnni(const Quantized* x, float* const* out, int tokens, const uint8_t* weights,
                       const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  rows(x, out, tokens, weights, scales, first, count, width);
}

}  // namespace novamesh
#endif
