// Int8 activations for AVX-512 with VNNI and VBMI. Codes have 128 added, because vpdpbusd takes
// unsigned times signed bytes; `offset` takes it off again. One 64-byte load covers two blocks.
#if defined(__x86_64__)
#include "int8.h"

#include <immintrin.h>

#define TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")))

namespace novamesh {
namespace {

TARGET inline __m128i codes() {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodesInt8));
  return _mm_xor_si128(table, _mm_set1_epi8(-128));
}

// The codes of each byte's low nibble: the table holds them four times, for an index has six bits.
TARGET inline __m512i look_up(__m512i bytes, __m512i table) {
  return _mm512_permutexvar_epi8(bytes, table);
}

TARGET inline __m512i add_halves(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

TARGET inline __m512i add_quarters(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// Lane i: the sum of block i, of eight registers with two blocks each, one in each half.
TARGET inline __m512i sixteen_sums(const __m512i dots[8]) {
  const __m512i a = add_quarters(add_halves(dots[0], dots[1]), add_halves(dots[2], dots[3]));
  const __m512i b = add_quarters(add_halves(dots[4], dots[5]), add_halves(dots[6], dots[7]));
  const __m512i sums = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88),
                                        _mm512_shuffle_i32x4(a, b, 0xdd));
  return _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), sums);
}

TARGET inline float add_parts(__m512 parts) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(parts),
                                     _mm512_extractf32x8_ps(parts, 1));
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}

// Bytes of a pair of blocks of which `left` are there.
inline __mmask64 pair_mask(int64_t left) {
  return left >= 2 ? ~0ull : left == 1 ? 0xffffffffull : 0;
}

// Sixteen blocks of a row, or the `left` last ones, for each token, added to `parts`.
template <int tokens, bool whole>
TARGET inline void add_blocks(const Quantized* x, const uint8_t* packed, const uint16_t* scales,
                              int64_t b, int64_t left, __m512i table, __m512 (&parts)[tokens]) {
  __m512i even[8], odd[8];
  for (int64_t j = 0; j < 8; ++j) {
    const uint8_t* at = packed + (b + 2 * j) * 32;
    const __m512i both = whole ? _mm512_loadu_si512(at)
                               : _mm512_maskz_loadu_epi8(pair_mask(left - 2 * j), at);
    // How far ahead, into which cache, and that loads keep their order: found by measuring.
    if constexpr (whole) {
      _mm_prefetch(reinterpret_cast<const char*>(at + 8192), _MM_HINT_T1);
      asm volatile("" ::: "memory");
    } else {
      _mm_prefetch(reinterpret_cast<const char*>(at + 4096), _MM_HINT_NTA);
    }
    even[j] = look_up(_mm512_srli_epi16(both, 4), table);
    odd[j] = look_up(both, table);
  }
  const __mmask16 mask = static_cast<__mmask16>((1u << left) - 1);
  const __m512 absmax = _mm512_cvtph_ps(
      whole ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + b))
            : _mm256_maskz_loadu_epi16(mask, scales + b));
  for (int t = 0; t < tokens; ++t) {
    const int8_t* q = x[t].q + b * 64;
    __m512i dots[8];
    for (int64_t j = 0; j < 8; ++j) {
      dots[j] = _mm512_setzero_si512();
      if (!whole && left <= 2 * j) continue;
      dots[j] = _mm512_dpbusd_epi32(dots[j], even[j], _mm512_loadu_si512(q + j * 128));
      dots[j] = _mm512_dpbusd_epi32(dots[j], odd[j], _mm512_loadu_si512(q + j * 128 + 64));
    }
    const __m512i sums =
        _mm512_add_epi32(sixteen_sums(dots), _mm512_loadu_si512(x[t].offset + b));
    const __m512 scale = _mm512_mul_ps(absmax, _mm512_loadu_ps(x[t].scale + b));
    parts[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, parts[t]);
  }
}

template <int tokens>
TARGET void rows_of(const Quantized* x, float* const* out, const uint8_t* weights,
                    const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  const int64_t blocks = width / kBlock, whole = blocks / 16 * 16;
  const __m512i table = _mm512_broadcast_i32x4(codes());
  for (int64_t row = first; row < first + count; ++row) {
    const uint8_t* packed = weights + row * blocks * 32;
    const uint16_t* absmax = scales + row * blocks;
    __m512 parts[tokens];
    for (int t = 0; t < tokens; ++t) parts[t] = _mm512_setzero_ps();
    for (int64_t b = 0; b < whole; b += 16)
      add_blocks<tokens, true>(x, packed, absmax, b, 16, table, parts);
    if (whole < blocks)
      add_blocks<tokens, false>(x, packed, absmax, whole, blocks - whole, table, parts);
    for (int t = 0; t < tokens; ++t) out[t][row] = add_parts(parts[t]);
  }
}

// Sixteen registers of sixteen int32, rows to columns.
TARGET inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

struct UnpackedTile {
  __m512i* codes;                     // [blocks, 16]
  float* absmax;                      // [blocks, kTileRows]
};

// The scales of kTileRows rows, block after block: absmax[b * 16 + row].
TARGET void unpack_scales(const uint16_t* scales, int64_t blocks, float* absmax) {
  for (int64_t b = 0; b < blocks; b += 16) {
    const int64_t some = blocks - b < 16 ? blocks - b : 16;
    const __mmask16 mask = static_cast<__mmask16>((1u << some) - 1);
    __m512i r[16];
    for (int i = 0; i < 16; ++i)
      r[i] = _mm512_castps_si512(
          _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, scales + i * blocks + b)));
    transpose(r);
    for (int i = 0; i < some; ++i) _mm512_store_si512(absmax + (b + i) * 16, r[i]);
  }
}

// Unpacks kTileRows rows: a block is sixteen registers, each four neighbouring elements of all rows
// (the even elements first). Each line of the rows is read once, for rows are often a power of two
// apart and share few sets of the cache.
TARGET void unpack(const uint8_t* weights, int64_t blocks, __m512i* tile) {
  const __m512i table = _mm512_broadcast_i32x4(codes());
  for (int64_t b = 0; b < blocks; b += 2) {
    const int count = b + 1 < blocks ? 16 : 8;
    const __mmask16 there = static_cast<__mmask16>((1u << count) - 1);
    __m512i packed[16];
    for (int i = 0; i < 16; ++i)
      packed[i] = _mm512_maskz_loadu_epi32(there, weights + (i * blocks + b) * 32);
    transpose(packed);
    for (int k = 0; k < count; ++k) {
      __m512i* to = tile + (b + k / 8) * 16 + k % 8;
      _mm512_store_si512(to, look_up(_mm512_srli_epi16(packed[k], 4), table));
      _mm512_store_si512(to + 8, look_up(packed[k], table));
    }
  }
}

// One block of some tiles for each of some tokens, added to `part`. Two tiles and six tokens keep
// the multipliers busy: a broadcast serves both tiles, and all sums stay in registers.
template <int tiles, int tokens>
TARGET inline void add_block(const Quantized* x, int64_t b, const UnpackedTile* tile,
                             __m512 (&part)[tiles][tokens]) {
  __m512i dot[tiles][tokens];
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < tiles; ++i) dot[i][t] = _mm512_set1_epi32(x[t].offset[b]);
  const int64_t at = b / 2 * 128 + b % 2 * 32;
  for (int k = 0; k < 16; ++k) {      // eight of even elements, then eight of odd ones
    __m512i codes[tiles];
    for (int i = 0; i < tiles; ++i) codes[i] = _mm512_load_si512(tile[i].codes + b * 16 + k);
    for (int t = 0; t < tokens; ++t) {
      const int32_t* q = reinterpret_cast<const int32_t*>(x[t].q + at);
      const __m512i four = _mm512_set1_epi32(q[k < 8 ? k : k + 8]);
      for (int i = 0; i < tiles; ++i) dot[i][t] = _mm512_dpbusd_epi32(dot[i][t], codes[i], four);
    }
  }
  for (int i = 0; i < tiles; ++i) {
    const __m512 absmax = _mm512_load_ps(tile[i].absmax + b * 16);
    for (int t = 0; t < tokens; ++t)
      part[i][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i][t]),
                                   _mm512_mul_ps(absmax, _mm512_set1_ps(x[t].scale[b])),
                                   part[i][t]);
  }
}

// Part after part in the order in which halves are added, so that whatever is complete waits in
// `done` for its other half. Meanwhile memory brings what is unpacked next, if there is something.
template <int tiles, int tokens>
TARGET void multiply(const Quantized* x, float* const* out, int64_t row, int64_t blocks,
                     const UnpackedTile* tile, const uint8_t* next) {
  static constexpr int8_t kOrder[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  __m512 done[5][tiles][tokens];
  for (int step = 0; step < 16; ++step) {
    __m512 part[tiles][tokens];
    for (int i = 0; i < tiles; ++i)
      for (int t = 0; t < tokens; ++t) part[i][t] = _mm512_setzero_ps();
    for (int64_t b = kOrder[step]; b < blocks; b += 16) {
      add_block<tiles, tokens>(x, b, tile, part);
      if (next == nullptr) continue;
      constexpr int64_t kBytes = tiles * kTileRows * (kBlock / 2);
      for (int64_t line = 0; line < kBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(next + b * kBytes + line), _MM_HINT_T1);
    }
    int level = 0;
    for (; step >> level & 1; ++level)
      for (int i = 0; i < tiles; ++i)
        for (int t = 0; t < tokens; ++t)
          part[i][t] = _mm512_add_ps(done[level][i][t], part[i][t]);
    for (int i = 0; i < tiles; ++i)
      for (int t = 0; t < tokens; ++t) done[level][i][t] = part[i][t];
  }
  for (int i = 0; i < tiles; ++i)
    for (int t = 0; t < tokens; ++t)
      _mm512_storeu_ps(out[t] + row + i * kTileRows, done[4][i][t]);
}

template <int tiles>
TARGET void multiply_all(const Quantized* x, float* const* out, int64_t tokens, int64_t row,
                         int64_t blocks, const UnpackedTile* tile, const uint8_t* next) {
  constexpr int kMany = 12 / tiles, kFew = 4 / tiles;
  int64_t t = 0;
  for (; t + kMany <= tokens; t += kMany, next = nullptr)
    multiply<tiles, kMany>(x + t, out + t, row, blocks, tile, next);
  for (; t + kFew <= tokens; t += kFew, next = nullptr)
    multiply<tiles, kFew>(x + t, out + t, row, blocks, tile, next);
  for (; t < tokens; ++t, next = nullptr)
    multiply<tiles, 1>(x + t, out + t, row, blocks, tile, next);
}

}  // namespace

void rows_int8_avx512vnni(const Quantized* x, float* const* out, int tokens,
                          const uint8_t* weights, const uint16_t* scales, int64_t first,
                          int64_t count, int64_t width) {
  using Fixed = void (*)(const Quantized*, float* const*, const uint8_t*, const uint16_t*,
                         int64_t, int64_t, int64_t);
  static constexpr Fixed kByTokens[kTokensMax] = {rows_of<1>, rows_of<2>, rows_of<3>, rows_of<4>,
                                                  rows_of<5>, rows_of<6>, rows_of<7>, rows_of<8>};
  kByTokens[tokens - 1](x, out, weights, scales, first, count, width);
}

void tile_avx512vnni(const Quantized* x, float* const* out, int64_t tokens,
                     const uint8_t* weights, const uint16_t* scales, int64_t first, int64_t rows,
                     int64_t width, float* scratch) {
  const int64_t blocks = width / kBlock, each = tile_floats(width);
  UnpackedTile tile[2];
  for (int i = 0; i < 2; ++i) {
    tile[i].codes = reinterpret_cast<__m512i*>(scratch + i * each);
    tile[i].absmax = scratch + i * each + blocks * kTileRows * (kBlock / 4);
  }
  for (int64_t row = first; row < first + rows; row += 2 * kTileRows) {
    const int some = row + kTileRows < first + rows ? 2 : 1;
    for (int i = 0; i < some; ++i) {
      const int64_t at = (row + i * kTileRows) * blocks;
      unpack(weights + at * 32, blocks, tile[i].codes);
      unpack_scales(scales + at, blocks, tile[i].absmax);
    }
    const uint8_t* next = weights + (row + some * kTileRows) * blocks * 32;
    if (some == 2) multiply_all<2>(x, out, tokens, row, blocks, tile, next);
    else multiply_all<1>(x, out, tokens, row, blocks, tile, next);
  }
}

}  // namespace novamesh
#endif
