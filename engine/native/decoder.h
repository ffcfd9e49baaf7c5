// A whole decoder, as Python describes it once at load, and one step of it over a batch.
#pragma once

#include "mlp.h"

namespace novamesh {

struct Norm {
  const float* weight;                // null: no norm here
  const float* bias;                  // or null
  int64_t width;
  int64_t centred;                    // LayerNorm, else RMSNorm
  float eps;
};

struct Layer {
  Norm attention_norm, query_norm, key_norm, mlp_norm;
  Matrix qkv, output;
  Router router;                      // no weights: a dense layer, a stack of one
  Stack experts, shared;              // shared: none, or a stack of one
  const float* shared_gate;           // [hidden]
  int64_t window;                     // 0: none
  float clip;                         // of q, k and v; 0: none
};

struct Decoder {
  int64_t layer_count, hidden, heads, kv_heads, width, vocab;
  const Layer* layers;
  Norm norm;
  Matrix embedding, head;
};

// Pages of all layers, one layer behind the other: see KvLayer.
struct Cache {
  void *keys, *values;
  float *key_scales, *value_scales;
  int64_t kind, blocks, block_size;
};

struct Step {
  int64_t tokens, sequences, table_width, rows;
  const int64_t *ids, *positions, *slots, *logit_rows;
  const int32_t *starts, *tables;
  const float *cosines, *sines;       // [tokens, width / 2]
  float* logits;                      // [rows, vocab]
};

class Forward {
 public:
  explicit Forward(Machine& machine) : machine_(machine) {}

  // False if an id, a position, a slot or a row is out of range; the cache may then hold some of
  // the tokens at their slots, the logits nothing.
  bool run(const Decoder& decoder, const Cache& cache, const Step& step);

 private:
  const float* normalised(const Norm& norm, int64_t tokens);
  void add(const float* product, int64_t tokens, int64_t width);
  bool attend(const Layer& layer, const AttentionShape& shape, const KvLayer& kv,
              const Step& step);
  bool mix(const Layer& layer, int64_t tokens);

  Machine& machine_;
  Buffer hidden_, normed_, qkv_, seen_, projected_, factors_, ids_, rows_;
  Operands operands_;
  Products products_;
  Routing routing_;
  Mlp mlp_;
};

void normalise(const Loops& loops, const Norm& norm, const float* x, float* out);
void rotate(float* head, const float* cosines, const float* sines, int64_t width);

}  // namespace novamesh
