// Matrices times tokens, shared out over the team.
#pragma once

#include <cstdint>
#include <vector>

#include "machine.h"

namespace novamesh {

struct Matrix {
  const void* weights;                // rows * width elements, packed for NF4
  const uint16_t* scales;             // NF4: one float16 a block
  const float* bias;                  // one a row, or null
  int64_t rows, width;
  int64_t kind;

  Matrix operator[](int64_t index) const;  // one of a stack that begins here; bias is not stacked
};

// Tokens as a matrix kind reads them: as they are, parted for NF4, or rounded to int8.
class Operands {
 public:
  // x [tokens, width], `stride` floats a token; it must outlive this, for it may be kept as it is.
  void prepare(Machine& machine, int64_t kind, const float* x, int64_t stride, int64_t tokens,
               int64_t width);

  bool int8() const { return int8_; }
  const float* plain(int64_t token) const { return plain_ + token * stride_; }
  const Quantized& quantized(int64_t token) const { return quantized_[token]; }

 private:
  void part(Machine& machine, const float* x, int64_t tokens, int64_t width);
  void round(Machine& machine, const float* x, int64_t tokens, int64_t width);

  bool int8_ = false;
  Buffer memory_;
  std::vector<Quantized> quantized_;
  const float* plain_ = nullptr;
  int64_t stride_ = 0;
};

// Products that are computed together; a list that keeps its memory.
class Products {
 public:
  // `count` tokens, indices into the operands (null: the first ones); out: where each one's product
  // goes, matrix.rows floats.
  void add(const Matrix& matrix, const Operands& operands, const int64_t* tokens,
           float* const* out, int64_t count);
  // The same for the first `count` tokens, to out [count, matrix.rows].
  void add(const Matrix& matrix, const Operands& operands, float* out, int64_t count);
  void run(Machine& machine);         // and forget them

 private:
  struct Product {
    Matrix matrix;
    int64_t first, count;             // its tokens, and their places in plain_ or quantized_, out_
    bool int8, tiles;
    int64_t first_part, part_rows;
  };

  void plan(const Machine& machine, Product& product, int64_t first_part) const;
  void run_part(Machine& machine, const Product& product, int64_t part, int worker) const;
  void run_rows(const Machine& machine, const Product& product, int64_t row, int64_t rows) const;

  std::vector<Product> products_;
  std::vector<const float*> plain_;   // by token of a product; one of the two is set
  std::vector<Quantized> quantized_;
  std::vector<float*> out_;
};

}  // namespace novamesh
