#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace novamesh {
namespace {

void embed(const Matrix& embedding, int64_t id, float* out) {
  const int64_t at = id * embedding.width;
  if (embedding.kind == kFloat32)
    std::memcpy(out, static_cast<const float*>(embedding.weights) + at, embedding.width * 4);
  else
    for (int64_t i = 0; i < embedding.width; ++i)
      out[i] = widen(static_cast<const uint16_t*>(embedding.weights)[at + i]);
}

bool in_range(const int64_t* values, int64_t count, int64_t limit) {
  return std::all_of(values, values + count,
                     [limit](int64_t value) { return value >= 0 && value < limit; });
}

KvLayer layer_of(const Cache& cache, const Decoder& decoder, int64_t layer) {
  static constexpr int64_t kBytes[] = {4, 2, 1};  // by KvKind
  const int64_t slots = layer * cache.blocks * decoder.kv_heads * cache.block_size;
  const int64_t bytes = slots * decoder.width * kBytes[cache.kind];
  float* key_scales = cache.key_scales == nullptr ? nullptr : cache.key_scales + slots;
  float* value_scales = cache.value_scales == nullptr ? nullptr : cache.value_scales + slots;
  return {static_cast<KvKind>(cache.kind), static_cast<uint8_t*>(cache.keys) + bytes,
          static_cast<uint8_t*>(cache.values) + bytes, key_scales, value_scales};
}

// The heads of one token's queries or keys: normalised as one or one by one.
void normalise_heads(const Loops& loops, const Norm& norm, float* heads, int64_t width) {
  if (norm.weight == nullptr) return;
  for (int64_t at = 0; at < width; at += norm.width) normalise(loops, norm, heads + at, heads + at);
}

}  // namespace

void normalise(const Loops& loops, const Norm& norm, const float* x, float* out) {
  const int64_t width = norm.width;
  float mean = 0.0f;
  if (norm.centred) {
    for (int64_t i = 0; i < width; ++i) mean += x[i];
    mean /= static_cast<float>(width);
    for (int64_t i = 0; i < width; ++i) out[i] = x[i] - mean;
    x = out;
  }
  const float square = loops.dot(x, x, width) / static_cast<float>(width);
  const float factor = 1.0f / std::sqrt(square + norm.eps);
  if (norm.bias == nullptr)
    for (int64_t i = 0; i < width; ++i) out[i] = x[i] * factor * norm.weight[i];
  else
    for (int64_t i = 0; i < width; ++i) out[i] = x[i] * factor * norm.weight[i] + norm.bias[i];
}

void rotate(float* head, const float* cosines, const float* sines, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = head[i], second = head[half + i];
    head[i] = first * cosines[i] - second * sines[i];
    head[half + i] = second * cosines[i] + first * sines[i];
  }
}

bool Forward::run(const Decoder& decoder, const Cache& cache, const Step& step) {
  const int64_t tokens = step.tokens, hidden = decoder.hidden;
  if (!in_range(step.ids, tokens, decoder.vocab)) return false;
  if (!in_range(step.slots, tokens, cache.blocks * cache.block_size)) return false;
  if (!in_range(step.logit_rows, step.rows, tokens)) return false;
  float* x = hidden_.floats(tokens * hidden);
  normed_.floats(tokens * hidden);
  for (int64_t t = 0; t < tokens; ++t) embed(decoder.embedding, step.ids[t], x + t * hidden);
  for (int64_t index = 0; index < decoder.layer_count; ++index) {
    const Layer& layer = decoder.layers[index];
    const AttentionShape shape = {
        decoder.heads, decoder.kv_heads, decoder.width, cache.blocks, cache.block_size,
        step.table_width, step.sequences, tokens, layer.window,
        1.0f / std::sqrt(static_cast<float>(decoder.width))};
    if (!attend(layer, shape, layer_of(cache, decoder, index), step)) return false;
    if (!mix(layer, tokens)) return false;
  }
  float* wanted = rows_.floats(step.rows * hidden);
  for (int64_t r = 0; r < step.rows; ++r)
    normalise(machine_.loops, decoder.norm, x + step.logit_rows[r] * hidden, wanted + r * hidden);
  operands_.prepare(machine_, decoder.head.kind, wanted, hidden, step.rows, hidden);
  products_.add(decoder.head, operands_, step.logits, step.rows);
  products_.run(machine_);
  return true;
}

// Every token's hidden state, normalised: what a layer's half begins with.
const float* Forward::normalised(const Norm& norm, int64_t tokens) {
  const float* x = hidden_.floats(0);
  float* out = normed_.floats(0);
  machine_.team.share(tokens, [&](int64_t t, int) {
    normalise(machine_.loops, norm, x + t * norm.width, out + t * norm.width);
  });
  return out;
}

// hidden += what `count` floats of `product` hold, token by token.
void Forward::add(const float* product, int64_t tokens, int64_t width) {
  float* x = hidden_.floats(0);
  for (int64_t i = 0; i < tokens * width; ++i) x[i] += product[i];
}

bool Forward::attend(const Layer& layer, const AttentionShape& shape, const KvLayer& kv,
                     const Step& step) {
  const int64_t tokens = step.tokens, hidden = layer.output.rows;
  const int64_t queries = shape.heads * shape.width, keys = shape.kv_heads * shape.width;
  const int64_t stride = queries + 2 * keys, half = shape.width / 2;
  float* qkv = qkv_.floats(tokens * stride);
  float* seen = seen_.floats(tokens * queries);
  float* projected = projected_.floats(tokens * hidden);
  operands_.prepare(machine_, layer.qkv.kind, normalised(layer.attention_norm, tokens), hidden,
                    tokens, hidden);
  products_.add(layer.qkv, operands_, qkv, tokens);
  products_.run(machine_);
  machine_.team.share(tokens, [&](int64_t t, int) {
    float* q = qkv + t * stride;
    normalise_heads(machine_.loops, layer.query_norm, q, queries);
    normalise_heads(machine_.loops, layer.key_norm, q + queries, keys);
    if (layer.clip > 0.0f)
      for (int64_t i = 0; i < stride; ++i) q[i] = std::clamp(q[i], -layer.clip, layer.clip);
    for (int64_t h = 0; h < shape.heads + shape.kv_heads; ++h)
      rotate(q + h * shape.width, step.cosines + t * half, step.sines + t * half, shape.width);
  });
  const AttentionLoops& loops = *machine_.loops.attention;
  if (!write_kv(loops, shape, kv, step.slots, qkv + queries, qkv + queries + keys, stride))
    return false;
  const AttentionBatch batch = {step.starts, step.positions, step.tables, step.slots};
  if (!novamesh::attend(loops, machine_.team, shape, kv, batch, qkv, stride, seen,
                        machine_.scratch))
    return false;
  operands_.prepare(machine_, layer.output.kind, seen, queries, tokens, queries);
  products_.add(layer.output, operands_, projected, tokens);
  products_.run(machine_);
  add(projected, tokens, hidden);
  return true;
}

bool Forward::mix(const Layer& layer, int64_t tokens) {
  const float* x = normalised(layer.mlp_norm, tokens);
  float* sum = hidden_.floats(0);
  const int64_t slots = layer.router.weights == nullptr ? 1 : layer.router.slots;
  float* factors = factors_.floats(tokens * slots);
  int64_t* ids = static_cast<int64_t*>(ids_.bytes(tokens * slots * 8));
  if (layer.router.weights != nullptr) {
    routing_.run(machine_, layer.router, x, tokens, factors, ids);
    if (!mlp_.run(machine_, layer.experts, x, tokens, slots, ids, factors, sum)) return false;
    if (layer.shared.experts == 0) return true;
    const int64_t hidden = layer.mlp_norm.width;
    for (int64_t t = 0; t < tokens; ++t) {
      const float gate = machine_.loops.dot(x + t * hidden, layer.shared_gate, hidden);
      factors[t] = 1.0f / (1.0f + std::exp(-gate));
    }
  } else {
    std::fill(factors, factors + tokens, 1.0f);
  }
  std::fill(ids, ids + tokens, 0);
  const Stack& dense = layer.router.weights == nullptr ? layer.experts : layer.shared;
  return mlp_.run(machine_, dense, x, tokens, 1, ids, factors, sum);
}

}  // namespace novamesh
