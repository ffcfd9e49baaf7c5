// Int8 activations in plain C++: the definition of the int8 loops, and what any CPU can run.
#include "int8.h"

#include <cmath>
#include <cstring>

namespace novamesh {

const int8_t kCodesInt8[16] = {-127, -88, -67, -50, -36, -23, -12, 0,
                               10,   20,  31,  43,  56,  71,  92,  127};

void quantize_scalar(const float* x, int64_t width, int8_t* q, float* scale, int32_t* offset) {
  const int64_t blocks = width / kBlock;
  if (blocks % 2) std::memset(q + blocks / 2 * 128, 0, 128);
  for (int64_t b = blocks; b < quantized_scales(width); ++b) scale[b] = 0.0f, offset[b] = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const float* in = x + b * kBlock;
    float top = 0.0f;
    for (int i = 0; i < kBlock; ++i) top = std::fmax(top, std::fabs(in[i]));
    const float step = quantum(top), inverse = step > 0.0f ? 1.0f / step : 0.0f;
    int8_t* out = q + b / 2 * 128 + b % 2 * 32;
    int sum = 0;
    for (int i = 0; i < kBlock; ++i) {
      const int value = static_cast<int>(std::nearbyintf(in[i] * inverse));
      out[i / 2 + i % 2 * 64] = static_cast<int8_t>(value);
      sum += value;
    }
    scale[b] = step / 127.0f;
    offset[b] = -128 * sum;
  }
}

void rows_int8_scalar(const Quantized* x, float* const* out, int tokens, const uint8_t* weights,
                      const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  const int64_t blocks = width / kBlock;
  for (int64_t row = first; row < first + count; ++row) {
    float part[kTokensMax][16] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const uint8_t* packed = weights + (row * blocks + b) * (kBlock / 2);
      int8_t even[32], odd[32];
      for (int i = 0; i < 32; ++i) {
        even[i] = kCodesInt8[packed[i] >> 4];
        odd[i] = kCodesInt8[packed[i] & 15];
      }
      const float absmax = widen(scales[row * blocks + b]);
      for (int t = 0; t < tokens; ++t) {
        const int8_t* q = x[t].q + b / 2 * 128 + b % 2 * 32;
        int32_t sum = 0;
        for (int i = 0; i < 32; ++i) sum += even[i] * q[i] + odd[i] * q[64 + i];
        float& to = part[t][b % 16];
        to = std::fma(static_cast<float>(sum), absmax * x[t].scale[b], to);
      }
    }
    for (int t = 0; t < tokens; ++t) {
      for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) part[t][i] += part[t][i + half];
      out[t][row] = part[t][0];
    }
  }
}

}  // namespace novamesh
