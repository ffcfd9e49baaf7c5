// The loops in plain C++: the definition that the other sets are compared with, and what any CPU
// without AVX2 runs. Four partial sums let a compiler use the vectors that every such CPU has.
#include "int8.h"

#include <cstring>

namespace novamesh {

const float kCodes[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

namespace {

float dot(const float* a, const float* b, int64_t count) {
  const int64_t whole = count / 4 * 4;
  float part[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < whole; i += 4)
    for (int lane = 0; lane < 4; ++lane) part[lane] += a[i + lane] * b[i + lane];
  float sum = (part[0] + part[1]) + (part[2] + part[3]);
  for (int64_t i = whole; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

void decode(const uint8_t* bytes, float* out) {  // one block, in the order that x is split
  for (int group = 0; group < 2; ++group)
    for (int i = 0; i < 16; ++i) {
      out[group * 32 + i] = kCodes[bytes[group * 16 + i] >> 4];
      out[group * 32 + 16 + i] = kCodes[bytes[group * 16 + i] & 15];
    }
}

template <Kind kind>
void rows(const float* const* x, float* const* out, int tokens, const void* weights,
          const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  const int64_t blocks = width / kBlock;
  for (int64_t row = first; row < first + count; ++row) {
    float sum[kTokensMax] = {};
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = row * width + block * kBlock;
      float buffer[kBlock];
      const float* wide = buffer;
      float scale = 1.0f;
      if (kind == kNf4) {
        decode(static_cast<const uint8_t*>(weights) + at / 2, buffer);
        scale = widen(scales[at / kBlock]);
      } else if (kind == kFloat16) {
        for (int i = 0; i < kBlock; ++i)
          buffer[i] = widen(static_cast<const uint16_t*>(weights)[at + i]);
      } else {
        wide = static_cast<const float*>(weights) + at;
      }
      for (int t = 0; t < tokens; ++t) sum[t] += dot(wide, x[t] + block * kBlock, kBlock) * scale;
    }
    for (int t = 0; t < tokens; ++t) out[t][row] = sum[t];
  }
}

uint64_t read(const uint8_t* bytes, int64_t count) {
  uint64_t sum[4] = {}, word;
  for (int64_t i = 0; i + 32 <= count; i += 32)
    for (int lane = 0; lane < 4; ++lane) {
      std::memcpy(&word, bytes + i + 8 * lane, 8);
      sum[lane] ^= word;
    }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

}  // namespace

const Loops kScalar = {
    {rows<kFloat32>, rows<kFloat16>, rows<kNf4>}, rows_int8_scalar, nullptr, quantize_scalar, dot,
    read, &kAttentionScalar};

}  // namespace novamesh
