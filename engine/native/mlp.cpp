#include "mlp.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace novamesh {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int64_t kEmpty = -1;  // a slot without an expert

int64_t best_of(const float* scores, int64_t count) {
  return std::max_element(scores, scores + count) - scores;
}

// Softmax over all experts; the best `slots` chances.
void choose_softmax(const Router& router, float* scores, float* factors, int64_t* ids) {
  const float top = *std::max_element(scores, scores + router.experts);
  float sum = 0.0f, chosen = 0.0f;
  for (int64_t e = 0; e < router.experts; ++e) sum += scores[e] = std::exp(scores[e] - top);
  for (int64_t k = 0; k < router.slots; ++k) {
    ids[k] = best_of(scores, router.experts);
    chosen += factors[k] = scores[ids[k]] / sum;
    scores[ids[k]] = kNever;
  }
  if (router.renormalise)
    for (int64_t k = 0; k < router.slots; ++k) factors[k] /= chosen;
}

// SparseMixer as Phi-3.5-MoE runs it outside training: each slot's factor is its softmax among the
// experts that are left and not further below the best than 2 jitter, relative.
void choose_sparsemixer(const Router& router, const float* given, float* scores, float* factors,
                        int64_t* ids) {
  std::copy(given, given + router.experts, scores);
  for (int64_t k = 0; k < router.slots; ++k) {
    ids[k] = best_of(scores, router.experts);
    const float top = scores[ids[k]];
    float sum = 0.0f;
    for (int64_t e = 0; e < router.experts; ++e) {
      const float distance = (top - given[e]) / std::max(std::fabs(given[e]), top);
      if (scores[e] != kNever && !(distance > 2.0f * router.jitter))
        sum += std::exp(scores[e] - top);
    }
    factors[k] = 1.0f / sum;
    scores[ids[k]] = kNever;
  }
}

}  // namespace

void Routing::run(Machine& machine, const Router& router, const float* x, int64_t tokens,
                  float* factors, int64_t* ids) {
  float* scores = scores_.floats((tokens + 1) * router.experts);
  float* left = scores + tokens * router.experts;
  const Matrix matrix{router.weights, nullptr, nullptr, router.experts, router.hidden, kFloat32};
  operands_.prepare(machine, kFloat32, x, router.hidden, tokens, router.hidden);
  products_.add(matrix, operands_, scores, tokens);
  products_.run(machine);
  for (int64_t t = 0; t < tokens; ++t) {
    float* score = scores + t * router.experts;
    if (router.sparsemixer)
      choose_sparsemixer(router, score, left, factors + t * router.slots, ids + t * router.slots);
    else
      choose_softmax(router, score, factors + t * router.slots, ids + t * router.slots);
  }
}

bool Mlp::run(Machine& machine, const Stack& stack, const float* x, int64_t tokens,
              int64_t slots, const int64_t* ids, const float* factors, float* sum) {
  const int64_t pairs = tokens * slots, size = stack.down.width, hidden = stack.down.rows;
  for (int64_t p = 0; p < pairs; ++p)
    if (ids[p] < kEmpty || ids[p] >= stack.experts) return false;
  sort(ids, pairs, stack.experts);
  float* wide = wide_.floats(pairs * std::max(2 * size, hidden));
  float* active = active_.floats(pairs * size);
  operands_.prepare(machine, stack.gate_up.kind, x, hidden, tokens, hidden);
  multiply(machine, stack.gate_up, slots, wide);
  machine.team.share(pairs, [&](int64_t p, int) {
    const float* gate = wide + 2 * p * size;
    if (ids[p] == kEmpty)
      std::fill_n(active + p * size, size, 0.0f);  // it is packed with the others
    else
      machine.loops.attention->silu_mul(gate, gate + size, active + p * size, size);
  });
  operands_.prepare(machine, stack.down.kind, active, size, pairs, size);
  multiply(machine, stack.down, 1, wide);
  machine.team.share(tokens, [&](int64_t t, int) {
    float* to = sum + t * hidden;
    for (int64_t i = 0; i < hidden; ++i) {
      float weighted = 0.0f;
      for (int64_t p = t * slots; p < (t + 1) * slots; ++p)
        if (ids[p] != kEmpty) weighted += wide[p * hidden + i] * factors[p];
      to[i] += weighted;
    }
  });
  return true;
}

void Mlp::sort(const int64_t* ids, int64_t pairs, int64_t experts) {
  start_.assign(experts + 1, 0);
  for (int64_t p = 0; p < pairs; ++p)
    if (ids[p] != kEmpty) ++start_[ids[p] + 1];
  for (int64_t e = 0; e < experts; ++e) start_[e + 1] += start_[e];
  order_.resize(start_[experts]);
  for (int64_t p = 0; p < pairs; ++p)
    if (ids[p] != kEmpty) order_[start_[ids[p]]++] = p;
  // Each start is now where its expert ends.
}

// Each expert's matrix times its own pairs: pair p reads operand p / share.
void Mlp::multiply(Machine& machine, const Matrix& matrix, int64_t share, float* out) {
  const int64_t pairs = static_cast<int64_t>(order_.size());
  token_.resize(pairs);
  out_.resize(pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    token_[i] = order_[i] / share;
    out_[i] = out + order_[i] * matrix.rows;
  }
  int64_t begin = 0;
  for (size_t e = 0; e + 1 < start_.size(); ++e) {
    const int64_t end = start_[e];
    products_.add(matrix[static_cast<int64_t>(e)], operands_, token_.data() + begin,
                  out_.data() + begin, end - begin);
    begin = end;
  }
  products_.run(machine);
}

}  // namespace novamesh
