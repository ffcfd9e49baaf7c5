// Rows of NF4 times int8 activations in 256-bit registers. Included once per instruction set, which
// defines TARGET, kUnsigned (codes have 128 added), Codes (how a block's codes are kept), unpack,
// and dot (codes times activations; the eight lanes together are a block's sum).

namespace novamesh {
namespace {

TARGET inline __m256 eight_scales(const uint16_t* scales, int64_t left) {
  if (left >= 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  alignas(16) uint16_t some[8] = {};
  for (int64_t i = 0; i < left; ++i) some[i] = scales[i];
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(some)));
}

TARGET inline __m256i add_halves(__m256i a, __m256i b) {
  return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

TARGET inline __m256i add_quarters(__m256i a, __m256i b) {
  return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

TARGET inline __m256i eight_sums(const __m256i dots[8]) {  // lane i: the sum of dots[i]
  const __m256i a = add_quarters(add_halves(dots[0], dots[1]), add_halves(dots[2], dots[3]));
  const __m256i b = add_quarters(add_halves(dots[4], dots[5]), add_halves(dots[6], dots[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                          _mm256_permute2x128_si256(a, b, 0x31));
}

TARGET inline float add_parts(__m256 low, __m256 high) {
  const __m256 eight = _mm256_add_ps(low, high);
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}

// Eight blocks of a row, or the `left` last ones, for each token, added to `part`.
template <int tokens, bool whole>
TARGET inline void add_blocks(const Quantized* x, const uint8_t* packed, __m256 absmax, int64_t b,
                              int64_t left, __m256 (&part)[tokens]) {
  Codes codes[8];
  for (int64_t j = 0; j < (whole ? 8 : left); ++j) {
    const uint8_t* at = packed + (b + j) * 32;
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096), _MM_HINT_NTA);
    codes[j] = unpack(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  for (int t = 0; t < tokens; ++t) {
    const int8_t* q = x[t].q + b * 64;
    __m256i dots[8];
    for (int64_t j = 0; j < 8; ++j)
      dots[j] = whole || j < left ? dot(codes[j], q + j / 2 * 128 + j % 2 * 32)
                                  : _mm256_setzero_si256();
    __m256i sums = eight_sums(dots);
    if constexpr (kUnsigned)
      sums = _mm256_add_epi32(
          sums, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x[t].offset + b)));
    const __m256 scale = _mm256_mul_ps(absmax, _mm256_loadu_ps(x[t].scale + b));
    part[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, part[t]);
  }
}

template <int tokens>
TARGET void rows_of(const Quantized* x, float* const* out, const uint8_t* weights,
                    const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  const int64_t blocks = width / kBlock;
  for (int64_t row = first; row < first + count; ++row) {
    const uint8_t* packed = weights + row * width / 2;
    __m256 part[2][tokens];
    for (int t = 0; t < tokens; ++t) part[0][t] = part[1][t] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b += 8) {
      const int64_t left = blocks - b;
      const __m256 absmax = eight_scales(scales + row * blocks + b, left);
      if (left >= 8) add_blocks<tokens, true>(x, packed, absmax, b, 8, part[b / 8 % 2]);
      else add_blocks<tokens, false>(x, packed, absmax, b, left, part[b / 8 % 2]);
    }
    for (int t = 0; t < tokens; ++t) out[t][row] = add_parts(part[0][t], part[1][t]);
  }
}

void rows(const Quantized* x, float* const* out, int tokens, const uint8_t* weights,
          const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  using Fixed = void (*)(const Quantized*, float* const*, const uint8_t*, const uint16_t*,
                         int64_t, int64_t, int64_t);
  static constexpr Fixed kByTokens[kTokensMax] = {rows_of<1>, rows_of<2>, rows_of<3>, rows_of<4>,
                                                  rows_of<5>, rows_of<6>, rows_of<7>, rows_of<8>};
  kByTokens[tokens - 1](x, out, weights, scales, first, count, width);
}

}  // namespace
}  // namespace novamesh
