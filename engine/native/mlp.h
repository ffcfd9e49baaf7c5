// SwiGLU networks over tokens: routed experts, and dense ones, which are a stack of one.
#pragma once

#include "product.h"

namespace novamesh {

struct Router {
  const float* weights;               // [experts, hidden], float32 always
  int64_t experts, slots, hidden;
  int64_t sparsemixer;                // else softmax over all experts
  int64_t renormalise;                // softmax: the chosen chances sum to one
  float jitter;                       // sparsemixer: how far below the best still counts, halved
};

struct Stack {
  Matrix gate_up;                     // [experts, 2 size, hidden], gate's rows first
  Matrix down;                        // [experts, hidden, size]
  int64_t experts;
};

class Routing {
 public:
  // x [tokens, hidden] to factors and expert ids [tokens, slots]; equal scores: the lower id.
  void run(Machine& machine, const Router& router, const float* x, int64_t tokens,
           float* factors, int64_t* ids);

 private:
  Operands operands_;
  Products products_;
  Buffer scores_;
};

class Mlp {
 public:
  // sum [tokens, hidden] += factors [tokens, slots] times the products of experts ids, in the order
  // of slots; an empty slot (id -1) adds nothing. False if an id is out of range.
  bool run(Machine& machine, const Stack& stack, const float* x, int64_t tokens, int64_t slots,
           const int64_t* ids, const float* factors, float* sum);

 private:
  void sort(const int64_t* ids, int64_t pairs, int64_t experts);
  void multiply(Machine& machine, const Matrix& matrix, int64_t share, float* out);

  std::vector<int64_t> order_, start_, token_;  // (token, slot) pairs, those of one expert together
  std::vector<float*> out_;
  Operands operands_;
  Products products_;
  Buffer wide_, active_;
};

}  // namespace novamesh
