// Int8 activations for ARM with the dot-product instructions (ARMv8.2 and later): signed codes.
#if defined(__aarch64__)
#include "int8.h"

#include <arm_neon.h>

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))

namespace novamesh {
namespace {

struct Codes { int8x16_t even[2], odd[2]; };

TARGET inline Codes unpack(const uint8_t* packed, int8x16_t table) {
  Codes codes;
  for (int half = 0; half < 2; ++half) {
    const uint8x16_t both = vld1q_u8(packed + 16 * half);
    codes.even[half] = vqtbl1q_s8(table, vshrq_n_u8(both, 4));
    codes.odd[half] = vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15)));
  }
  return codes;
}

TARGET inline int32x4_t dot(const Codes& codes, const int8_t* q) {
  int32x4_t sum = vdotq_s32(vdupq_n_s32(0), codes.even[0], vld1q_s8(q));
  sum = vdotq_s32(sum, codes.even[1], vld1q_s8(q + 16));
  sum = vdotq_s32(sum, codes.odd[0], vld1q_s8(q + 64));
  return vdotq_s32(sum, codes.odd[1], vld1q_s8(q + 80));
}

TARGET inline float32x4_t four_scales(const uint16_t* scales, int64_t left) {
  uint16_t some[4] = {};
  for (int64_t i = 0; i < (left < 4 ? left : 4); ++i) some[i] = scales[i];
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(some)));
}

TARGET inline float add_parts(const float32x4_t part[4]) {
  const float32x4_t four =
      vaddq_f32(vaddq_f32(part[0], part[2]), vaddq_f32(part[1], part[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

template <int tokens>
TARGET void rows_of(const Quantized* x, float* const* out, const uint8_t* weights,
                    const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  const int64_t blocks = width / kBlock;
  const int8x16_t table = vld1q_s8(kCodesInt8);
  for (int64_t row = first; row < first + count; ++row) {
    const uint8_t* packed = weights + row * width / 2;
    float32x4_t part[tokens][4];
    for (int t = 0; t < tokens; ++t)
      for (int i = 0; i < 4; ++i) part[t][i] = vdupq_n_f32(0.0f);
    for (int64_t b = 0; b < blocks; b += 4) {
      const int64_t left = blocks - b;
      const float32x4_t absmax = four_scales(scales + row * blocks + b, left);
      Codes codes[4] = {};
      for (int64_t j = 0; j < 4 && j < left; ++j)
        codes[j] = unpack(packed + (b + j) * 32, table);
      for (int t = 0; t < tokens; ++t) {
        int32x4_t dots[4];
        for (int64_t j = 0; j < 4; ++j) {
          const int8_t* q = x[t].q + (b + j) / 2 * 128 + j % 2 * 32;
          dots[j] = j < left ? dot(codes[j], q) : vdupq_n_s32(0);
        }
        const int32x4_t sums = vpaddq_s32(vpaddq_s32(dots[0], dots[1]),
                                          vpaddq_s32(dots[2], dots[3]));
        float32x4_t& to = part[t][b / 4 % 4];
        to = vfmaq_f32(to, vcvtq_f32_s32(sums), vmulq_f32(absmax, vld1q_f32(x[t].scale + b)));
      }
    }
    for (int t = 0; t < tokens; ++t) out[t][row] = add_parts(part[t]);
  }
}

}  // namespace

void rows_int8_neon(const Quantized* x, float* const* out, int tokens, const uint8_t* weights,
                    const uint16_t* scales, int64_t first, int64_t count, int64_t width) {
  using Fixed = void (*)(const Quantized*, float* const*, const uint8_t*, const uint16_t*,
                         int64_t, int64_t, int64_t);
  static constexpr Fixed kByTokens[kTokensMax] = {rows_of<1>, rows_of<2>, rows_of<3>, rows_of<4>,
                                                  rows_of<5>, rows_of<6>, rows_of<7>, rows_of<8>};
  kByTokens[tokens - 1](x, out, weights, scales, first, count, width);
}

}  // namespace novamesh
#endif
