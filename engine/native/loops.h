// What the instruction-set files give to everything above them: loops over one thread's share.
//
// Rules of all implementations: a row's sum for a token is taken in one order that does not depend
// on how many tokens share the call, so that a token's result never depends on its neighbours.
// The float32 loops of two sets may differ in the last bits. The int8 loops give the same bits in
// every set, by rows or by tiles: a block's products are summed as whole numbers, and its sum s is
// added as fma(s, absmax * scale, part[block % 16]); at the end the sixteen parts are added in
// halves (i + 8, then i + 4, i + 2, i + 1). They differ from the exact ones by what rounding the
// activations costs, about 0.7 % of a product's rms.
#pragma once

#include <cstdint>

#include "attention.h"

namespace novamesh {

constexpr int64_t kBlock = 64;        // weights a scale, and the unit of every width
constexpr int kTokensMax = 8;         // tokens that share one pass over a row
constexpr int64_t kTileRows = 16;     // rows that a tile unpacks at once
enum Kind : int32_t { kFloat32 = 0, kFloat16 = 1, kNf4 = 2 };

extern const float kCodes[16];        // NF4, ascending
extern const int8_t kCodesInt8[16];   // round(127 * kCodes)

// One token's activations as int8. Bytes: for each pair of blocks 128, the even elements of both,
// then the odd ones, as NF4 packs them (an odd last block is followed by zeros). With d the largest
// magnitude of a block / 127: q = round(x / d), scale = d / 127, which also undoes kCodesInt8's
// factor, and offset = -128 * sum(q), for sets whose codes have 128 added. Scale and offset have
// one element a block, and zeros up to a multiple of 16.
struct Quantized {
  const int8_t* q;
  const float* scale;
  const int32_t* offset;
};

inline int64_t quantized_bytes(int64_t width) { return (width / kBlock + 1) / 2 * 2 * kBlock; }
inline int64_t quantized_scales(int64_t width) { return (width / kBlock + 15) / 16 * 16; }
inline int64_t tile_floats(int64_t width) { return width / kBlock * kTileRows * (kBlock / 4 + 1); }

// Rows of a matrix times up to kTokensMax tokens: out[t][first + r] = row r . x[t].
// NF4 reads x in groups of 32: 16 even elements, then the 16 odd ones, as bytes pack them.
using Rows = void (*)(const float* const* x, float* const* out, int tokens, const void* weights,
                      const uint16_t* scales, int64_t first, int64_t rows, int64_t width);
// The same for NF4 rows and int8 activations.
using RowsInt8 = void (*)(const Quantized* x, float* const* out, int tokens,
                          const uint8_t* weights, const uint16_t* scales, int64_t first,
                          int64_t rows, int64_t width);
// The same for any number of tokens and a multiple of kTileRows rows, which are unpacked once into
// `tile`: twice tile_floats(width) floats, aligned to 64 bytes.
using TileInt8 = void (*)(const Quantized* x, float* const* out, int64_t tokens,
                          const uint8_t* weights, const uint16_t* scales, int64_t first,
                          int64_t rows, int64_t width, float* tile);
// x [width] to int8: q has quantized_bytes(width), scale and offset quantized_scales(width).
using Quantize = void (*)(const float* x, int64_t width, int8_t* q, float* scale, int32_t* offset);
using Dot = float (*)(const float* a, const float* b, int64_t count);
// Touches every byte and computes next to nothing: what memory gives at best.
using Read = uint64_t (*)(const uint8_t* bytes, int64_t count);

struct Loops {
  Rows rows[3];                       // float32 arithmetic, by Kind
  RowsInt8 rows_int8;
  TileInt8 tile_int8;                 // null: rows_int8 serves many tokens too
  Quantize quantize;
  Dot dot;
  Read read;
  const AttentionLoops* attention;    // and the experts' silu_mul
};

extern const Loops kScalar;
#if defined(__x86_64__)
extern const Loops kAvx2;
extern const Loops kAvx512;
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
