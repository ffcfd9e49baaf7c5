// The loops of attention, one text for all instruction sets.
//
// Included by the file of each set, which first defines in the unnamed namespace of novamesh:
// TARGET; kLanes floats in a Reg; kVectors registers across a panel and kColumns down it that one
// pass of `multiply` sums; kSums registers that one pass of `add_values` may; and the operations on
// Reg that are used below. A Pair is 2 kLanes elements of a row: as they stand, but of bfloat16 the
// even ones, then the odd ones, which is one shift and one mask instead of two shuffles.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "attention.h"

namespace novamesh {
namespace {

constexpr int64_t kPair = 2 * kLanes;
constexpr int64_t kAhead = 32;        // rows between a prefetch and its use
static_assert(kRowPad % kLanes == 0 && kSplit % kRowPad == 0, "lists of rows are padded");

template <typename T>
constexpr bool kParted = std::is_same_v<T, uint16_t>;

inline float widened(float x) { return x; }
inline float widened(int8_t x) { return x; }
inline float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Where element `lane` of register `half` of a pair stands in the row.
template <typename T>
constexpr int64_t place(int64_t half, int64_t lane) {
  return kParted<T> ? 2 * lane + half : half * kLanes + lane;
}

template <typename T>
TARGET void pack(const float* x, float scale, int64_t width, float* out) {
  for (int64_t pair = 0; pair < padded_width(width); pair += kPair)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t from = pair + place<T>(half, lane);
        out[pair + half * kLanes + lane] = from < width ? x[from] * scale : 0.0f;
      }
}

template <typename T>
TARGET inline void prefetch(const T* row, int64_t width) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < width * static_cast<int64_t>(sizeof(T)); at += 64)
    __builtin_prefetch(bytes + at, 0, 2);  // to the second cache: the first has no room for them
}

// One pair of some rows times the queries of some heads. Sums stand as [row, head].
template <typename T, int heads, bool whole>
TARGET inline void score_pair(const T* const* row, int64_t at, int64_t width, const float* query,
                              int64_t padded, Reg (&sum)[kLanes]) {
  Reg first[heads], second[heads];
  for (int h = 0; h < heads; ++h) {
    first[h] = load(query + h * padded + at);
    second[h] = load(query + h * padded + at + kLanes);
  }
  for (int s = 0; s < kLanes / heads; ++s) {
    const Pair key = whole ? load_pair(row[s] + at) : load_pair(row[s] + at, width - at);
    for (int h = 0; h < heads; ++h)
      sum[s * heads + h] = fma(key.second, second[h], fma(key.first, first[h], sum[s * heads + h]));
  }
}

// query [heads, padded] times `count` rows to scores [count, heads]; the rows after are fetched.
template <typename T, int heads>
TARGET void score(const Split& s, const float* query, float* scores) {
  const T* keys = static_cast<const T*>(s.layer->keys);
  const T* values = static_cast<const T*>(s.layer->values);
  const int64_t padded = padded_width(s.width), whole = s.width / kPair * kPair;
  for (int64_t i = 0; i < s.count; i += kLanes / heads) {
    const T* row[kLanes / heads];
    for (int r = 0; r < kLanes / heads; ++r) {
      row[r] = keys + s.rows[i + r] * s.width;
      const int64_t ahead = i + r + kAhead;
      if (ahead < s.count)
        prefetch(keys + s.rows[ahead] * s.width, s.width);
      else if (ahead - s.count < s.count)
        prefetch(values + s.rows[ahead - s.count] * s.width, s.width);
    }
    Reg sum[kLanes];
    for (int k = 0; k < kLanes; ++k) sum[k] = all(0.0f);
    for (int64_t at = 0; at < whole; at += kPair)
      score_pair<T, heads, true>(row, at, s.width, query, padded, sum);
    if (whole < s.width) score_pair<T, heads, false>(row, whole, s.width, query, padded, sum);
    store(scores + i * heads, sums(sum));
  }
}

template <int heads>
TARGET void multiply_rows(const float* scales, const Split& s, float* scores) {
  for (int64_t i = 0; i < s.count; ++i)
    for (int h = 0; h < heads; ++h) scores[i * heads + h] *= scales[s.rows[i]];
}

// scores [count, heads] to exp(score - top), with the top and the sum of each head.
template <int heads>
TARGET void soften(float* scores, int64_t count, float* top, float* sum) {
  const int64_t end = round_up(count * heads, kLanes);
  for (int64_t i = count * heads; i < end; ++i)
    scores[i] = -std::numeric_limits<float>::infinity();
  Reg high = all(-FLT_MAX), total = all(0.0f);
  for (int64_t i = 0; i < end; i += kLanes) high = max(high, load(scores + i));
  alignas(64) float lanes[kLanes];
  store(lanes, high);
  for (int h = 0; h < heads; ++h) {   // lane i is of head i % heads
    for (int i = h + heads; i < kLanes; i += heads)
      lanes[h] = lanes[i] > lanes[h] ? lanes[i] : lanes[h];
    for (int i = h + heads; i < kLanes; i += heads) lanes[i] = lanes[h];
    top[h] = lanes[h];
  }
  high = load(lanes);
  for (int64_t i = 0; i < end; i += kLanes) {
    const Reg chance = exp(sub(load(scores + i), high));
    store(scores + i, chance);
    total = add(total, chance);
  }
  store(lanes, total);
  for (int h = 0; h < heads; ++h) {
    sum[h] = lanes[h];
    for (int i = h + heads; i < kLanes; i += heads) sum[h] += lanes[i];
  }
}

// The sum over rows of chance [count, heads] times `pairs` pairs of the row, to mix [heads, padded].
// The pass that begins a row fetches all of the rows after it: pages do not follow each other.
template <typename T, int heads, int pairs, bool whole>
TARGET void add_values(const Split& s, const float* chances, int64_t at, float* mix) {
  const T* values = static_cast<const T*>(s.layer->values) + at;
  const int64_t padded = padded_width(s.width);
  Reg sum[heads][pairs][2];
  for (int h = 0; h < heads; ++h)
    for (int p = 0; p < pairs; ++p) sum[h][p][0] = sum[h][p][1] = all(0.0f);
  for (int64_t i = 0; i < s.count; ++i) {
    const T* row = values + s.rows[i] * s.width;
    if (at == 0 && i + kAhead < s.count) prefetch(values + s.rows[i + kAhead] * s.width, s.width);
    Reg chance[heads];
    for (int h = 0; h < heads; ++h) chance[h] = all(chances[i * heads + h]);
    for (int p = 0; p < pairs; ++p) {
      const Pair value = whole ? load_pair(row + p * kPair) : load_pair(row, s.width - at);
      for (int h = 0; h < heads; ++h) {
        sum[h][p][0] = fma(value.first, chance[h], sum[h][p][0]);
        sum[h][p][1] = fma(value.second, chance[h], sum[h][p][1]);
      }
    }
  }
  for (int h = 0; h < heads; ++h)
    for (int p = 0; p < pairs; ++p) {
      store(mix + h * padded + at + p * kPair, sum[h][p][0]);
      store(mix + h * padded + at + p * kPair + kLanes, sum[h][p][1]);
    }
}

template <typename T, int heads>
TARGET void split_heads(const Split& s, int64_t head) {
  alignas(64) float scores[kSplit * heads];
  const int64_t padded = padded_width(s.width);
  float* mix = s.mix() + head * padded;
  score<T, heads>(s, s.packed + head * padded, scores);
  if (s.layer->kind == kKvInt8) multiply_rows<heads>(s.layer->key_scales, s, scores);
  soften<heads>(scores, s.count, s.top() + head, s.sum() + head);
  if (s.layer->kind == kKvInt8) multiply_rows<heads>(s.layer->value_scales, s, scores);
  constexpr int pairs = kSums / (2 * heads) < 4 ? kSums / (2 * heads) : 4;
  int64_t at = 0;
  for (; at + pairs * kPair <= s.width; at += pairs * kPair)
    add_values<T, heads, pairs, true>(s, scores, at, mix);
  for (; at + kPair <= s.width; at += kPair) add_values<T, heads, 1, true>(s, scores, at, mix);
  if (at < s.width) add_values<T, heads, 1, false>(s, scores, at, mix);
}

template <typename T>
TARGET void split_of(const Split& s) {
  int64_t head = 0;
  for (int64_t h = 0; h < s.group; ++h)
    pack<T>(s.query + h * s.width, s.scale, s.width, s.packed + h * padded_width(s.width));
  for (; head + 4 <= s.group; head += 4) split_heads<T, 4>(s, head);
  for (; head + 2 <= s.group; head += 2) split_heads<T, 2>(s, head);
  if (head < s.group) split_heads<T, 1>(s, head);
}

TARGET void split(const Split& s) {
  switch (s.layer->kind) {
    case kKvFloat32: return split_of<float>(s);
    case kKvBfloat16: return split_of<uint16_t>(s);
    case kKvInt8: return split_of<int8_t>(s);
  }
}

TARGET inline float lone_exp(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, exp(all(x)));
  return lanes[0];
}

template <typename T>
TARGET void unpack(const float* mix, float factor, int64_t width, float* out) {
  for (int64_t pair = 0; pair < width; pair += kPair)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t to = pair + place<T>(half, lane);
        if (to < width) out[to] = mix[pair + half * kLanes + lane] * factor;
      }
}

TARGET void merge(const Split& first, int64_t splits, float* out) {
  const int64_t padded = padded_width(first.width), used = round_up(first.width, kPair);
  const int64_t step = split_floats(first.group, first.width);
  for (int64_t head = 0; head < first.group; ++head, out += first.width) {
    float* mix = first.mix() + head * padded;
    float top = first.top()[head];
    for (int64_t i = 1; i < splits; ++i)
      top = first.top()[i * step + head] > top ? first.top()[i * step + head] : top;
    const float own = lone_exp(first.top()[head] - top);
    float sum = first.sum()[head] * own;
    for (int64_t at = 0; at < used && splits > 1; at += kLanes)
      store(mix + at, mul(load(mix + at), all(own)));
    for (int64_t i = 1; i < splits; ++i) {
      const float factor = lone_exp(first.top()[i * step + head] - top);
      sum += first.sum()[i * step + head] * factor;
      for (int64_t at = 0; at < used; at += kLanes)
        store(mix + at, fma(load(mix + i * step + at), all(factor), load(mix + at)));
    }
    if (first.layer->kind == kKvBfloat16) unpack<uint16_t>(mix, 1.0f / sum, first.width, out);
    else unpack<float>(mix, 1.0f / sum, first.width, out);
  }
}

}  // namespace
}  // namespace novamesh
