// The int8 loops by instruction set; what they compute is said in loops.h.
#pragma once

#include "loops.h"

namespace novamesh {

// The step of a block whose largest magnitude is `top`; too small a block is all zero.
inline float quantum(float top) { return top > 1e-30f ? top / 127.0f : 0.0f; }

void quantize_scalar(const float*, int64_t, int8_t*, float*, int32_t*);
void rows_int8_scalar(const Quantized*, float* const*, int, const uint8_t*, const uint16_t*,
                      int64_t, int64_t, int64_t);

#if defined(__x86_64__)
void quantize_avx2(const float*, int64_t, int8_t*, float*, int32_t*);
void rows_int8_avx2(const Quantized*, float* const*, int, const uint8_t*, const uint16_t*,
                    int64_t, int64_t, int64_t);
void rows_int8_avxvnni(const Quantized*, float* const*, int, const uint8_t*, const uint16_t*,
                       int64_t, int64_t, int64_t);
void rows_int8_avx512vnni(const Quantized*, float* const*, int, const uint8_t*, const uint16_t*,
                          int64_t, int64_t, int64_t);
void tile_avx512vnni(const Quantized*, float* const*, int64_t, const uint8_t*, const uint16_t*,
                     int64_t, int64_t, int64_t, float*);
#endif

#if defined(__aarch64__)
void rows_int8_neon(const Quantized*, float* const*, int, const uint8_t*, const uint16_t*,
                    int64_t, int64_t, int64_t);
#endif

}  // namespace novamesh
