// The C interface of libnovamesh_kernels, and what it does around the loops of an instruction set.
//
// Every function takes the set to use, keeps no state, never throws across the interface, and
// returns 0, or a negative number: -1 out of memory, -2 an index out of range, -3 no such set.
// One thread; the caller brings buffers that hold what the comments say.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#define NM_API extern "C" __attribute__((visibility("default")))

using namespace novamesh;

namespace {

constexpr int kDone = 0, kOutOfMemory = -1, kOutOfRange = -2, kNoSuchSet = -3;
constexpr int64_t kRowTile = 64;      // rows whose weights stay in cache while tokens pass by

#if defined(__x86_64__)
const Set* const kSets[] = {&kScalar, &kAvx2, &kAvx512};
#else
const Set* const kSets[] = {&kScalar};
#endif
constexpr int kSetCount = sizeof(kSets) / sizeof(kSets[0]);

bool runs(int set) {
  if (set < 0 || set >= kSetCount) return false;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (set == 1) return avx2;
  if (set == 2)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

struct Matrix {
  Kind kind;
  const void* weights;                // rows * width elements, packed for NF4
  const uint16_t* scales;             // NF4: one float16 a block
  int64_t rows, width;
};

constexpr int64_t kBlockBytes[] = {4 * kBlock, 2 * kBlock, kBlock / 2};  // by Kind

Matrix matrix_at(const Matrix& stack, int64_t index) {
  const int64_t blocks = stack.rows * stack.width / kBlock * index;
  return {stack.kind, static_cast<const uint8_t*>(stack.weights) + blocks * kBlockBytes[stack.kind],
          stack.scales == nullptr ? nullptr : stack.scales + blocks, stack.rows, stack.width};
}

// x as the rows of a kind read it: NF4 wants it parted (see Rows), the others as it is.
const float* part(Kind kind, const float* x, std::vector<float>& buffer, int64_t count) {
  if (kind != kNf4) return x;
  buffer.resize(count);
  float* out = buffer.data();
  for (int64_t group = 0; group < count; group += 32)
    for (int i = 0; i < 16; ++i) {
      out[group + i] = x[group + 2 * i];
      out[group + 16 + i] = x[group + 2 * i + 1];
    }
  return out;
}

void product(const Set& set, const Matrix& m, const float* const* x, float* const* out,
             int64_t tokens) {
  for (int64_t row = 0; row < m.rows; row += kRowTile) {
    const int64_t rows = std::min(kRowTile, m.rows - row);
    for (int64_t t = 0; t < tokens; t += kTokensMax)
      set.rows[m.kind](x + t, out + t, static_cast<int>(std::min<int64_t>(kTokensMax, tokens - t)),
                       m.weights, m.scales, row, rows, m.width);
  }
}

struct Pairs {                        // (token, slot) pairs, those of one expert side by side
  std::vector<int64_t> order, start;

  Pairs(const int64_t* ids, int64_t count, int64_t experts) : order(count), start(experts + 1) {
    for (int64_t i = 0; i < count; ++i) ++start[ids[i] + 1];
    for (int64_t e = 0; e < experts; ++e) start[e + 1] += start[e];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < count; ++i) order[next[ids[i]]++] = i;
  }
};

// Each expert's rows times its own pairs: x of pair p is at x + p / share * width.
void grouped(const Set& set, const Matrix& stack, const Pairs& pairs, const float* x,
             int64_t share, float* out) {
  std::vector<const float*> from(pairs.order.size());
  std::vector<float*> to(pairs.order.size());
  for (size_t i = 0; i < pairs.order.size(); ++i) {
    from[i] = x + pairs.order[i] / share * stack.width;
    to[i] = out + pairs.order[i] * stack.rows;
  }
  for (size_t e = 0; e + 1 < pairs.start.size(); ++e) {
    const int64_t begin = pairs.start[e], count = pairs.start[e + 1] - begin;
    if (count > 0) product(set, matrix_at(stack, e), &from[begin], &to[begin], count);
  }
}

void linear(const Set& set, const Matrix& m, const float* x, int64_t tokens, float* out) {
  std::vector<float> buffer;
  x = part(m.kind, x, buffer, tokens * m.width);
  std::vector<const float*> from(tokens);
  std::vector<float*> to(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    from[t] = x + t * m.width;
    to[t] = out + t * m.rows;
  }
  product(set, m, from.data(), to.data(), tokens);
}

// gate_up's output [pairs, 2 size] to silu(gate) * up [pairs, size].
void activate(const float* in, float* out, int64_t pairs, int64_t size) {
  for (int64_t p = 0; p < pairs; ++p)
    for (int64_t i = 0; i < size; ++i) {
      const float gate = in[2 * p * size + i];
      out[p * size + i] = gate / (1.0f + std::exp(-gate)) * in[(2 * p + 1) * size + i];
    }
}

void softmax(float* x, int64_t count) {
  const float top = *std::max_element(x, x + count);
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += x[i] = std::exp(x[i] - top);
  for (int64_t i = 0; i < count; ++i) x[i] /= sum;
}

}  // namespace

// Changes whenever a signature or a meaning below does.
NM_API int nm_abi_version() { return 2; }

NM_API const char* nm_set_name(int set) {
  return set >= 0 && set < kSetCount ? kSets[set]->name : nullptr;
}

NM_API int nm_set_runs(int set) { return runs(set); }

// x [tokens, width] times weights [rows, width] to out [tokens, rows]; width a multiple of 64.
NM_API int nm_linear(int set, int kind, const float* x, int64_t tokens, const void* weights,
                     const uint16_t* scales, int64_t rows, int64_t width, float* out) try {
  if (!runs(set)) return kNoSuchSet;
  if (kind < kFloat32 || kind > kNf4 || width % kBlock) return kOutOfRange;
  linear(*kSets[set], {static_cast<Kind>(kind), weights, scales, rows, width}, x, tokens, out);
  return kDone;
} catch (const std::bad_alloc&) { return kOutOfMemory; }

struct nm_experts_shape { int64_t tokens, slots, experts, hidden, size, kind; };

// Routed SwiGLU experts: x [tokens, hidden], ids and factors [tokens, slots],
// gate_up [experts, 2 size, hidden], down [experts, hidden, size], out [tokens, hidden].
NM_API int nm_experts(int set, const nm_experts_shape* shape, const float* x, const int64_t* ids,
                      const float* factors, const void* gate_up, const uint16_t* gate_up_scales,
                      const void* down, const uint16_t* down_scales, float* out) try {
  if (!runs(set)) return kNoSuchSet;
  const nm_experts_shape s = *shape;
  const int64_t count = s.tokens * s.slots;
  if (s.kind < kFloat32 || s.kind > kNf4) return kOutOfRange;
  if (s.hidden % kBlock || s.size % kBlock) return kOutOfRange;
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= s.experts) return kOutOfRange;
  const Kind kind = static_cast<Kind>(s.kind);
  const Pairs pairs(ids, count, s.experts);
  std::vector<float> buffer;
  std::vector<float> wide(count * std::max(2 * s.size, s.hidden)), active(count * s.size);
  grouped(*kSets[set], {kind, gate_up, gate_up_scales, 2 * s.size, s.hidden}, pairs,
          part(kind, x, buffer, s.tokens * s.hidden), s.slots, wide.data());
  activate(wide.data(), active.data(), count, s.size);
  grouped(*kSets[set], {kind, down, down_scales, s.hidden, s.size}, pairs,
          part(kind, active.data(), buffer, count * s.size), 1, wide.data());
  for (int64_t t = 0; t < s.tokens; ++t)
    for (int64_t i = 0; i < s.hidden; ++i) {
      float sum = 0.0f;
      for (int64_t k = t * s.slots; k < (t + 1) * s.slots; ++k)
        sum += wide[k * s.hidden + i] * factors[k];
      out[t * s.hidden + i] = sum;
    }
  return kDone;
} catch (const std::bad_alloc&) { return kOutOfMemory; }

// Softmax of router [experts, hidden] times x, the best `slots`, summing to one; ties: lower id.
NM_API int nm_route(int set, const nm_experts_shape* shape, const float* x, const float* router,
                    float* factors, int64_t* ids) try {
  if (!runs(set)) return kNoSuchSet;
  const nm_experts_shape s = *shape;
  if (s.hidden % kBlock || s.slots < 1 || s.slots > s.experts) return kOutOfRange;
  std::vector<float> chances(s.tokens * s.experts);
  linear(*kSets[set], {kFloat32, router, nullptr, s.experts, s.hidden}, x, s.tokens,
         chances.data());
  for (int64_t t = 0; t < s.tokens; ++t) {
    float* chance = &chances[t * s.experts];
    softmax(chance, s.experts);
    float sum = 0.0f;
    for (int64_t k = t * s.slots; k < (t + 1) * s.slots; ++k) {
      ids[k] = std::max_element(chance, chance + s.experts) - chance;
      sum += factors[k] = chance[ids[k]];
      chance[ids[k]] = -1.0f;
    }
    for (int64_t k = t * s.slots; k < (t + 1) * s.slots; ++k) factors[k] /= sum;
  }
  return kDone;
} catch (const std::bad_alloc&) { return kOutOfMemory; }

// Each row of x [tokens, width] to a root mean square of one, times weights [width].
NM_API int nm_rms_norm(int set, const float* x, const float* weights, float eps, int64_t tokens,
                       int64_t width, float* out) {
  if (!runs(set)) return kNoSuchSet;
  for (int64_t t = 0; t < tokens; ++t, x += width, out += width) {
    const float mean = kSets[set]->dot(x, x, width) / static_cast<float>(width);
    const float factor = 1.0f / std::sqrt(mean + eps);
    for (int64_t i = 0; i < width; ++i) out[i] = x[i] * factor * weights[i];
  }
  return kDone;
}

// Rotates heads of x, `stride` floats a token, to out [tokens, heads, width]; angles as cosines
// and sines [tokens, width / 2]; element i pairs with i + width / 2.
NM_API int nm_rotate(const float* x, int64_t stride, const float* cosines, const float* sines,
                     int64_t tokens, int64_t heads, int64_t width, float* out) {
  const int64_t half = width / 2;
  for (int64_t t = 0; t < tokens; ++t, x += stride, cosines += half, sines += half)
    for (int64_t h = 0; h < heads; ++h, out += width) {
      const float* first = x + h * width;
      const float* second = first + half;
      for (int64_t i = 0; i < half; ++i) {
        out[i] = first[i] * cosines[i] - second[i] * sines[i];
        out[i + half] = second[i] * cosines[i] + first[i] * sines[i];
      }
    }
  return kDone;
}

struct nm_attention_shape {
  int64_t sequences, heads, kv_heads, width, blocks, block_size, table_width, query_stride;
};

// Causal attention over a paged cache: keys and values [blocks, block_size, kv_heads, width],
// query `query_stride` floats a token, tables [sequences, table_width], out [tokens, heads, width].
NM_API int nm_attention(int set, const nm_attention_shape* shape, const float* query,
                        const float* keys, const float* values, const int32_t* starts,
                        const int64_t* positions, const int32_t* tables, float scale,
                        float* out) try {
  if (!runs(set)) return kNoSuchSet;
  const Set& loops = *kSets[set];
  const nm_attention_shape s = *shape;
  const int64_t group = s.heads / s.kv_heads, slot = s.kv_heads * s.width;
  std::vector<float> chances;
  std::vector<int64_t> slots;
  for (int64_t q = 0; q < s.sequences; ++q)
    for (int64_t t = starts[q]; t < starts[q + 1]; ++t) {
      const int64_t seen = positions[t] + 1;
      if (seen < 1 || seen > s.table_width * s.block_size) return kOutOfRange;
      chances.resize(seen);
      slots.resize(seen);
      for (int64_t c = 0; c < seen; ++c) {
        const int64_t block = tables[q * s.table_width + c / s.block_size];
        if (block < 0 || block >= s.blocks) return kOutOfRange;
        slots[c] = (block * s.block_size + c % s.block_size) * slot;
      }
      for (int64_t h = 0; h < s.heads; ++h) {
        const float* asked = query + t * s.query_stride + h * s.width;
        const int64_t head = h / group * s.width;
        for (int64_t c = 0; c < seen; ++c)
          chances[c] = scale * loops.dot(asked, keys + slots[c] + head, s.width);
        softmax(chances.data(), seen);
        float* sum = out + (t * s.heads + h) * s.width;
        std::fill(sum, sum + s.width, 0.0f);
        for (int64_t c = 0; c < seen; ++c)
          loops.add_scaled(sum, chances[c], values + slots[c] + head, s.width);
      }
    }
  return kDone;
} catch (const std::bad_alloc&) { return kOutOfMemory; }
