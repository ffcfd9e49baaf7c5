// Attention over a paged KV cache: what the forward driver calls, and the loops that an instruction
// set gives to it.
//
// Rules: float32 arithmetic whatever the cache holds; a cached element is widened exactly, so that
// the result is that of the dequantized cache. What a token gets never depends on the other tokens
// of the batch: lone tokens (decode) are cut by their own length, chunks (prefill) at absolute
// positions. The two ways, and two sets, may differ in the last bits.
#pragma once

#include <cstdint>

#include "scratch.h"
#include "team.h"

namespace novamesh {

enum KvKind : int32_t { kKvFloat32 = 0, kKvBfloat16 = 1, kKvInt8 = 2 };

// One layer's pages: [blocks, kv_heads, block_size, width]; scales [blocks, kv_heads, block_size],
// of int8 only. A row is one token's vector of one kv head.
struct KvLayer {
  KvKind kind;
  void* keys;
  void* values;
  float* key_scales;
  float* value_scales;
};

struct AttentionShape {
  int64_t heads, kv_heads, width, blocks, block_size, table_width, sequences, tokens;
  int64_t window;                     // a token at p sees (p - window, p]; 0: all up to p
  float scale;                        // of query . key, before the softmax
};

struct AttentionBatch {               // as ForwardBatch has them
  const int32_t* starts;              // [sequences + 1]
  const int64_t* positions;           // [tokens], ascending within a sequence
  const int32_t* tables;              // [sequences, table_width]
  const int64_t* slots;               // [tokens]; read by write_kv alone
};

constexpr int64_t kSplit = 256;       // rows that one part of a lone token's attention reads
constexpr int64_t kTile = 64;         // rows that a panel of queries meets at a time
constexpr int64_t kPanelRowsMax = 48;
constexpr int64_t kRowPad = 16;       // lists of rows repeat their last up to a multiple of this

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }
inline int64_t padded_width(int64_t width) { return round_up(width, 32); }

// A lone token and the heads that share a kv head, against at most kSplit rows.
struct Split {
  const KvLayer* layer;
  const int64_t* rows;                // indices of rows, padded to a multiple of kRowPad
  int64_t count, width, group;
  const float* query;                 // [group, width]
  float scale;
  float* packed;                      // room for [group, padded width]
  float* result;                      // split_floats: top [group], sum [group], then mixes

  float* top() const { return result; }
  float* sum() const { return result + group; }
  float* mix() const { return result + round_up(2 * group, 16); }  // [group, padded width]
};

inline int64_t split_floats(int64_t group, int64_t width) {
  return round_up(2 * group, 16) + group * padded_width(width);
}

// Rows widened to float32: [kTile, stride], zeros after `count` rows and after each row's end.
struct Tile {
  float* keys;
  float* values;
  int64_t count, stride;
};

// Queries side by side, one a lane: what a lane does never depends on its neighbours.
struct Panel {
  int64_t rows, width;                // rows: at most AttentionLoops::panel
  float* query;                       // [width, panel]
  float* mix;                         // [width rounded up to 8, panel]: sums of chance * value
  float* top;                         // [panel], the highest score yet
  float* sum;                         // [panel], the sum of exp(score - top) yet
  float* low;                         // [panel]: key k of this tile is seen if low < k <= high
  float* high;
  bool hides;                         // whether any lane does not see all of this tile
};

inline int64_t panel_floats(int64_t panel, int64_t width) {
  return panel * (width + round_up(width, 8) + 4);
}
inline int64_t tile_stride(int64_t width) {  // no power of two, so that rows do not share sets
  return round_up(width, 16) + 16;
}

struct AttentionLoops {
  int64_t panel;                      // queries a panel holds
  void (*split)(const Split& split);
  // `splits` results, one after another, to the heads' outputs [group, width]; uses up the results.
  void (*merge)(const Split& first, int64_t splits, float* out);
  void (*widen)(const KvLayer& layer, const int64_t* rows, int64_t width, const Tile& tile);
  void (*open)(const Panel& panel, const float* const* queries, float scale);
  void (*meet)(const Panel& panel, const Tile& tile, float* scores);  // room for [kTile, panel]
  void (*close)(const Panel& panel, float* const* outs);
  // One row to what the cache holds; `scale` is written for int8 alone.
  void (*narrow)(KvKind kind, const float* x, int64_t width, void* out, float* scale);
  void (*silu_mul)(const float* gate, const float* up, float* out, int64_t count);
};

extern const AttentionLoops kAttentionScalar;
#if defined(__x86_64__)
extern const AttentionLoops kAttentionAvx2;    // needs avx2, fma
extern const AttentionLoops kAttentionAvx512;  // needs avx512 f, bw, dq, vl
#endif

// Queries [tokens, heads * width], `stride` floats a token, already rotated, to
// out [tokens, heads * width]. False, and nothing done, if an index is out of range. Throws
// std::bad_alloc.
bool attend(const AttentionLoops& loops, Team& team, const AttentionShape& shape,
            const KvLayer& layer, const AttentionBatch& batch, const float* query, int64_t stride,
            float* out, Scratch& scratch);

// Keys and values [tokens, kv_heads * width], `stride` floats a token, to the cache's rows of
// slots [tokens]: bfloat16 rounded to nearest even; int8 by scale = max|x| / 127 of each row, and
// x / scale rounded to nearest even. False, and nothing written, if a slot is out of range.
bool write_kv(const AttentionLoops& loops, const AttentionShape& shape, const KvLayer& layer,
              const int64_t* slots, const float* keys, const float* values, int64_t stride);

}  // namespace novamesh
