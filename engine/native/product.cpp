#include "product.h"

#include <algorithm>

namespace novamesh {
namespace {

constexpr int64_t kBlockBytes[] = {4 * kBlock, 2 * kBlock, kBlock / 2};  // by Kind
constexpr int64_t kPartBytes = 256 << 10;  // of weights: some 3 us of one thread's bandwidth
constexpr int64_t kTileFrom = 10;         // tokens from which unpacking a tile pays
constexpr int64_t kInt8Tokens = 6;        // more do not fit the registers beside a row's codes

}  // namespace

Matrix Matrix::operator[](int64_t index) const {
  const int64_t blocks = rows * width / kBlock * index;
  return {static_cast<const uint8_t*>(weights) + blocks * kBlockBytes[kind],
          scales == nullptr ? nullptr : scales + blocks, nullptr, rows, width, kind};
}

void Operands::prepare(Machine& machine, int64_t kind, const float* x, int64_t stride,
                       int64_t tokens, int64_t width) {
  plain_ = x;
  stride_ = stride;
  int8_ = kind == kNf4 && machine.int8;
  if (int8_) round(machine, x, tokens, width);
  else if (kind == kNf4) part(machine, x, tokens, width);
}

void Operands::part(Machine& machine, const float* x, int64_t tokens, int64_t width) {
  float* parted = memory_.floats(tokens * width);
  const int64_t stride = stride_;
  machine.team.share(tokens, [=](int64_t t, int) {
    const float* in = x + t * stride;
    float* out = parted + t * width;
    for (int64_t group = 0; group < width; group += 32)
      for (int i = 0; i < 16; ++i) {
        out[group + i] = in[group + 2 * i];
        out[group + 16 + i] = in[group + 2 * i + 1];
      }
  });
  plain_ = parted;
  stride_ = width;
}

void Operands::round(Machine& machine, const float* x, int64_t tokens, int64_t width) {
  const int64_t bytes = quantized_bytes(width), scales = quantized_scales(width);
  const int64_t each = bytes + 8 * scales;
  int8_t* memory = static_cast<int8_t*>(memory_.bytes(tokens * each));
  quantized_.resize(tokens);
  machine.team.share(tokens, [&, memory](int64_t t, int) {
    int8_t* q = memory + t * each;
    float* scale = reinterpret_cast<float*>(q + bytes);
    int32_t* offset = reinterpret_cast<int32_t*>(scale + scales);
    machine.loops.quantize(x + t * stride_, width, q, scale, offset);
    quantized_[t] = {q, scale, offset};
  });
}

void Products::add(const Matrix& matrix, const Operands& operands, const int64_t* tokens,
                   float* const* out, int64_t count) {
  if (count == 0) return;
  const bool int8 = operands.int8();
  products_.push_back({matrix, static_cast<int64_t>(out_.size()), count, int8, false, 0, 0});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = tokens == nullptr ? i : tokens[i];
    plain_.push_back(int8 ? nullptr : operands.plain(token));
    quantized_.push_back(int8 ? operands.quantized(token) : Quantized{});
    out_.push_back(out[i]);
  }
}

void Products::add(const Matrix& matrix, const Operands& operands, float* out, int64_t count) {
  const size_t first = out_.size();
  add(matrix, operands, nullptr, &out, std::min<int64_t>(count, 1));
  for (int64_t i = 1; i < count; ++i) {
    plain_.push_back(operands.int8() ? nullptr : operands.plain(i));
    quantized_.push_back(operands.int8() ? operands.quantized(i) : Quantized{});
    out_.push_back(out + i * matrix.rows);
  }
  if (count > 0) products_.back().count = static_cast<int64_t>(out_.size() - first);
}

void Products::plan(const Machine& machine, Product& product, int64_t first_part) const {
  const Matrix& m = product.matrix;
  product.tiles = product.int8 && machine.loops.tile_int8 != nullptr && product.count >= kTileFrom;
  const int64_t row_bytes = m.width / kBlock * kBlockBytes[m.kind];
  const int64_t rows = product.tiles ? 2 : kPartBytes / row_bytes / kTileRows;
  product.part_rows = kTileRows * std::max<int64_t>(1, rows);
  product.first_part = first_part;
}

void Products::run(Machine& machine) {
  int64_t parts = 0, tile = 0;
  for (Product& product : products_) {
    plan(machine, product, parts);
    parts += (product.matrix.rows + product.part_rows - 1) / product.part_rows;
    if (product.tiles) tile = std::max(tile, 2 * tile_floats(product.matrix.width));
  }
  machine.scratch.reserve(tile);
  machine.team.share(parts, [&](int64_t part, int worker) {
    const auto after = std::upper_bound(
        products_.begin(), products_.end(), part,
        [](int64_t wanted, const Product& product) { return wanted < product.first_part; });
    const Product& product = *(after - 1);
    run_part(machine, product, part - product.first_part, worker);
  });
  products_.clear();
  plain_.clear();
  quantized_.clear();
  out_.clear();
}

void Products::run_part(Machine& machine, const Product& product, int64_t part,
                        int worker) const {
  const Matrix& m = product.matrix;
  const int64_t row = part * product.part_rows;
  const int64_t rows = std::min(product.part_rows, m.rows - row);
  const int64_t tiled = product.tiles ? rows / kTileRows * kTileRows : 0;
  float* const* out = &out_[product.first];
  if (tiled > 0)
    machine.loops.tile_int8(&quantized_[product.first], out, product.count,
                       static_cast<const uint8_t*>(m.weights), m.scales, row, tiled, m.width,
                       machine.scratch.of(worker, 0));
  if (tiled < rows) run_rows(machine, product, row + tiled, rows - tiled);
  if (m.bias == nullptr) return;
  for (int64_t t = 0; t < product.count; ++t)
    for (int64_t r = row; r < row + rows; ++r) out[t][r] += m.bias[r];
}

void Products::run_rows(const Machine& machine, const Product& product, int64_t row,
                        int64_t rows) const {
  const Matrix& m = product.matrix;
  const int64_t limit = product.int8 ? kInt8Tokens : kTokensMax;
  const int64_t groups = (product.count + limit - 1) / limit;
  const int64_t most = (product.count + groups - 1) / groups;  // eight are better 4 + 4 than 6 + 2
  for (int64_t t = 0; t < product.count; t += most) {
    const int tokens = static_cast<int>(std::min(most, product.count - t));
    const int64_t at = product.first + t;
    if (product.int8)
      machine.loops.rows_int8(&quantized_[at], &out_[at], tokens,
                              static_cast<const uint8_t*>(m.weights), m.scales, row, rows,
                              m.width);
    else
      machine.loops.rows[m.kind](&plain_[at], &out_[at], tokens, m.weights, m.scales, row, rows,
                                 m.width);
  }
}

}  // namespace novamesh
