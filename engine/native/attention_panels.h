// What a chunk of a prompt does: panels of queries meet tiles of widened rows. One text for all
// instruction sets, included as attention_loops.h is, after it.
//
// Queries lie across the lanes, so that scores, maxima and sums need no work between lanes, and both
// products are one loop: a column is a key of `query . key`, or an element of `chance * value`.
#pragma once

#include "attention_loops.h"

namespace novamesh {
namespace {

constexpr int64_t kPanel = kVectors * kLanes;
static_assert(kPanel <= kPanelRowsMax && kTile % kRowPad == 0, "lists of rows are padded");
static_assert(kTile % kColumns == 0 && 8 % kColumns == 0, "columns are padded to eight");

template <typename T>
TARGET void widen_rows(const T* elements, const float* scales, const int64_t* rows, int64_t width,
                       const Tile& tile, float* out) {
  for (int64_t i = 0; i < tile.count; ++i, out += tile.stride) {
    const T* row = elements + rows[i] * width;
    const float factor = std::is_same_v<T, int8_t> ? scales[rows[i]] : 1.0f;
    int64_t at = 0;
    for (; at + kLanes <= width; at += kLanes) {
      const Reg wide = load_plain(row + at);
      store(out + at, std::is_same_v<T, int8_t> ? mul(wide, all(factor)) : wide);
    }
    for (; at < width; ++at)
      out[at] = std::is_same_v<T, int8_t> ? widened(row[at]) * factor : widened(row[at]);
    for (; at < round_up(width, 8); ++at) out[at] = 0.0f;
  }
  for (int64_t i = tile.count; i < round_up(tile.count, kColumns); ++i, out += tile.stride)
    std::memset(out, 0, sizeof(float) * tile.stride);
}

TARGET void widen(const KvLayer& layer, const int64_t* rows, int64_t width, const Tile& tile) {
  const auto both = [&](auto element) {
    using T = decltype(element);
    widen_rows(static_cast<const T*>(layer.keys), layer.key_scales, rows, width, tile, tile.keys);
    widen_rows(static_cast<const T*>(layer.values), layer.value_scales, rows, width, tile,
               tile.values);
  };
  switch (layer.kind) {
    case kKvFloat32: return both(float{});
    case kKvBfloat16: return both(uint16_t{});
    case kKvInt8: return both(int8_t{});
  }
}

// The queries of up to kPanel rows, times scale, one a lane; lanes that are left over get the last.
TARGET void open(const Panel& panel, const float* const* queries, float scale) {
  for (int64_t first = 0; first < kPanel; first += kLanes) {
    const float* row[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      row[i] = queries[first + i < panel.rows ? first + i : panel.rows - 1];
    int64_t at = 0;
    for (; at + kLanes <= panel.width; at += kLanes) {
      Reg x[kLanes];
      for (int i = 0; i < kLanes; ++i) x[i] = mul(load(row[i] + at), all(scale));
      transpose(x);
      for (int i = 0; i < kLanes; ++i) store(panel.query + (at + i) * kPanel + first, x[i]);
    }
    for (; at < panel.width; ++at)
      for (int64_t i = 0; i < kLanes; ++i)
        panel.query[at * kPanel + first + i] = row[i][at] * scale;
    store(panel.top + first, all(-FLT_MAX));
    store(panel.sum + first, all(0.0f));
  }
  std::memset(panel.mix, 0, sizeof(float) * round_up(panel.width, 8) * kPanel);
}

// sum[c] += lanes[i] * element(c, i) over depth; elements of one i are neighbours, or those of one c.
template <int vectors, bool neighbours>
TARGET inline void multiply(const float* lanes, const float* elements, int64_t stride,
                            int64_t depth, Reg (&sum)[kColumns][vectors]) {
  for (int64_t i = 0; i < depth; ++i) {
    Reg x[vectors];
    for (int v = 0; v < vectors; ++v) x[v] = load(lanes + i * kPanel + v * kLanes);
    for (int c = 0; c < kColumns; ++c) {
      const Reg y = all(neighbours ? elements[i * stride + c] : elements[c * stride + i]);
      for (int v = 0; v < vectors; ++v) sum[c][v] = fma(x[v], y, sum[c][v]);
    }
  }
}

// Scores [count, panel] to exp(score - top); the factor by which earlier sums shrink.
TARGET inline Reg soften_lanes(const Panel& panel, int64_t count, int64_t first, float* scores) {
  const Reg old = load(panel.top + first);
  Reg top = old, total = all(0.0f);
  if (panel.hides) {
    const Reg low = load(panel.low + first), high = load(panel.high + first);
    for (int64_t k = 0; k < count; ++k) {
      float* at = scores + k * kPanel + first;
      store(at, hide(load(at), all(static_cast<float>(k)), low, high));
    }
  }
  for (int64_t k = 0; k < count; ++k) top = max(top, load(scores + k * kPanel + first));
  for (int64_t k = 0; k < count; ++k) {
    float* at = scores + k * kPanel + first;
    const Reg chance = exp(sub(load(at), top));
    store(at, chance);
    total = add(total, chance);
  }
  const Reg factor = exp(sub(old, top));
  store(panel.top + first, top);
  store(panel.sum + first, fma(load(panel.sum + first), factor, total));
  return factor;
}

template <int vectors>
TARGET void meet_with(const Panel& panel, const Tile& tile, float* scores) {
  for (int64_t key = 0; key < tile.count; key += kColumns) {
    Reg sum[kColumns][vectors];
    for (int c = 0; c < kColumns; ++c)
      for (int v = 0; v < vectors; ++v) sum[c][v] = all(0.0f);
    multiply<vectors, false>(panel.query, tile.keys + key * tile.stride, tile.stride, panel.width,
                             sum);
    for (int c = 0; c < kColumns; ++c)
      for (int v = 0; v < vectors; ++v)
        store(scores + (key + c) * kPanel + v * kLanes, sum[c][v]);
  }
  Reg factor[vectors];
  for (int v = 0; v < vectors; ++v)
    factor[v] = soften_lanes(panel, tile.count, v * kLanes, scores);
  for (int64_t at = 0; at < panel.width; at += kColumns) {
    float* mix = panel.mix + at * kPanel;
    Reg sum[kColumns][vectors];
    for (int c = 0; c < kColumns; ++c)
      for (int v = 0; v < vectors; ++v)
        sum[c][v] = mul(load(mix + c * kPanel + v * kLanes), factor[v]);
    multiply<vectors, true>(scores, tile.values + at, tile.stride, tile.count, sum);
    for (int c = 0; c < kColumns; ++c)
      for (int v = 0; v < vectors; ++v) store(mix + c * kPanel + v * kLanes, sum[c][v]);
  }
}

TARGET void meet(const Panel& panel, const Tile& tile, float* scores) {
  static_assert(kVectors == 2 || kVectors == 3, "one call for each number of vectors");
  const int64_t vectors = (panel.rows + kLanes - 1) / kLanes;
  if (vectors == 1) return meet_with<1>(panel, tile, scores);
  if (vectors == 2) return meet_with<2>(panel, tile, scores);
  if constexpr (kVectors == 3) meet_with<3>(panel, tile, scores);
}

TARGET void close(const Panel& panel, float* const* outs) {
  for (int64_t first = 0; first < panel.rows; first += kLanes) {
    const int64_t lanes = panel.rows - first < kLanes ? panel.rows - first : kLanes;
    const Reg factor = div(all(1.0f), load(panel.sum + first));
    alignas(64) float factors[kLanes];
    store(factors, factor);
    int64_t at = 0;
    for (; at + kLanes <= panel.width; at += kLanes) {
      Reg x[kLanes];
      for (int i = 0; i < kLanes; ++i)
        x[i] = mul(load(panel.mix + (at + i) * kPanel + first), factor);
      transpose(x);
      for (int i = 0; i < lanes; ++i) store(outs[first + i] + at, x[i]);
    }
    for (; at < panel.width; ++at)
      for (int64_t i = 0; i < lanes; ++i)
        outs[first + i][at] = panel.mix[at * kPanel + first + i] * factors[i];
  }
}

TARGET void narrow_bfloat16(const float* x, int64_t width, uint16_t* out) {
  for (int64_t i = 0; i < width; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

TARGET float narrow_int8(const float* x, int64_t width, int8_t* out) {
  constexpr float kRounder = 12582912.0f;  // added and taken away, it rounds to nearest even
  float most = 0.0f;
  for (int64_t i = 0; i < width; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
  const float scale = most / 127.0f;
  if (scale == 0.0f) return std::memset(out, 0, width), 0.0f;
  for (int64_t i = 0; i < width; ++i) {
    float q = x[i] / scale;           // no reciprocal: the reference divides, and bits must agree
    q = q > -127.0f ? q : -127.0f;    // what is not a number ends here, too
    q = q < 127.0f ? q : 127.0f;
    out[i] = static_cast<int8_t>(static_cast<int32_t>((q + kRounder) - kRounder));
  }
  return scale;
}

TARGET void narrow(KvKind kind, const float* x, int64_t width, void* out, float* scale) {
  switch (kind) {
    case kKvFloat32: std::memcpy(out, x, sizeof(float) * width); return;
    case kKvBfloat16: return narrow_bfloat16(x, width, static_cast<uint16_t*>(out));
    case kKvInt8: *scale = narrow_int8(x, width, static_cast<int8_t*>(out)); return;
  }
}

TARGET inline Reg silu(Reg x) {
  return div(x, add(all(1.0f), exp(sub(all(0.0f), x))));
}

TARGET void silu_mul(const float* gate, const float* up, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(out + i, mul(silu(load(gate + i)), load(up + i)));
  alignas(64) float rest[kLanes] = {};
  std::memcpy(rest, gate + i, sizeof(float) * (count - i));
  store(rest, silu(load(rest)));
  for (int64_t lane = 0; i < count; ++i, ++lane) out[i] = rest[lane] * up[i];
}

constexpr AttentionLoops kLoops = {kPanel, split, merge,  widen,   open,
                                   meet,   close, narrow, silu_mul};

}  // namespace
}  // namespace novamesh
