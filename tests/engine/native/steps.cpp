// Whole steps of small random decoders on every instruction set that runs here, with buffers of exactly
// the sizes that the C interface asks for: for the sanitizers, which see every byte too far and
// every race of the team (`make sanitize`). What is computed is the Python tests' business; here it
// must only be finite, and the same twice.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "decoder.h"
#include "sets.h"

using namespace novamesh;

extern "C" {
void* nm_open(int set, int threads, int int8);
void nm_close(void* engine);
int nm_forward(void* engine, const Decoder*, const Cache*, const Step*);
uint64_t nm_read(void* engine, const uint8_t* bytes, int64_t count);
}

namespace {

std::mt19937_64 source(1);

int64_t below(int64_t end) { return static_cast<int64_t>(source() % static_cast<uint64_t>(end)); }

// Owns every buffer of one decoder; none is a byte longer than said.
class Buffers {
 public:
  template <typename T, typename Make>
  T* make(int64_t count, const Make& element) {
    auto held = std::shared_ptr<T>(new T[count], std::default_delete<T[]>());
    for (int64_t i = 0; i < count; ++i) held.get()[i] = element();
    held_.push_back(held);
    return held.get();
  }
  float* floats(int64_t count) {
    return make<float>(count, [] { return static_cast<float>(below(2001) - 1000) / 4000.0f; });
  }
  Matrix matrix(int64_t rows, int64_t width, Kind kind, bool bias, int64_t copies = 1) {
    Matrix made{nullptr, nullptr, bias ? floats(rows) : nullptr, rows, width, kind};
    const int64_t count = copies * rows * width;
    const auto half = [] { return static_cast<uint16_t>(0x2c00 + below(0x800)); };
    if (kind == kFloat32) made.weights = floats(count);
    if (kind == kFloat16) made.weights = make<uint16_t>(count, half);
    if (kind == kNf4) {
      made.weights = make<uint8_t>(count / 2, [] { return static_cast<uint8_t>(below(256)); });
      made.scales = make<uint16_t>(count / 64, half);
    }
    return made;
  }
  Norm norm(int64_t width, bool centred) {
    return {floats(width), centred ? floats(width) : nullptr, width, centred, 1e-5f};
  }

 private:
  std::vector<std::shared_ptr<void>> held_;
};

struct Shape {
  int64_t hidden, heads, kv_heads, width, size, experts, slots, vocab, window;
  bool odd;                           // biases, LayerNorm, sparsemixer, QK-norm, shared expert, clip
};

constexpr int64_t kBlocks = 12, kBlockSize = 4, kTableWidth = 6;

Layer make_layer(Buffers& b, const Shape& s, bool dense) {
  Layer layer{};
  const int64_t queries = s.heads * s.width, keys = s.kv_heads * s.width;
  layer.attention_norm = b.norm(s.hidden, s.odd);
  layer.mlp_norm = b.norm(s.hidden, s.odd);
  if (s.odd) layer.query_norm = layer.key_norm = b.norm(s.width, false);
  layer.qkv = b.matrix(queries + 2 * keys, s.hidden, kNf4, s.odd);
  layer.output = b.matrix(s.hidden, queries, kNf4, s.odd);
  const int64_t experts = dense ? 1 : s.experts;
  if (!dense) {
    layer.router = {b.floats(s.experts * s.hidden), s.experts, s.slots, s.hidden,
                    s.odd && s.slots == 2, 1, 0.01f};
  }
  layer.experts = {b.matrix(2 * s.size, s.hidden, kNf4, false, experts),
                   b.matrix(s.hidden, s.size, kNf4, false, experts), experts};
  if (s.odd && !dense) {
    layer.shared = {b.matrix(2 * s.size, s.hidden, kNf4, false),
                    b.matrix(s.hidden, s.size, kNf4, false), 1};
    layer.shared_gate = b.floats(s.hidden);
    layer.clip = 2.0f;
  }
  layer.window = s.window;
  return layer;
}

// One step of two sequences: `first` tokens of one from position `from` on, and a lone one.
std::vector<float> run_step(void* engine, const Decoder& decoder, const Cache& cache,
                            int64_t from, int64_t first) {
  Buffers b;
  const int64_t tokens = first + 1, half = decoder.width / 2;
  int64_t at = 0;
  const auto position = [&] { return at < first ? from + at++ : from; };
  int64_t* positions = b.make<int64_t>(tokens, position);
  int32_t next = 0;
  int32_t* tables = b.make<int32_t>(2 * kTableWidth, [&] { return next++; });
  int64_t token = 0;
  int64_t* slots = b.make<int64_t>(tokens, [&] {
    const int64_t p = positions[token], table = token++ < first ? 0 : kTableWidth;
    return tables[table + p / kBlockSize] * kBlockSize + p % kBlockSize;
  });
  int32_t* starts = b.make<int32_t>(3, [] { return 0; });
  starts[1] = static_cast<int32_t>(first);
  starts[2] = static_cast<int32_t>(tokens);
  int64_t* rows = b.make<int64_t>(2, [&] { return tokens - 1; });
  rows[0] = first - 1;
  std::vector<float> logits(2 * decoder.vocab);
  int64_t id = 1;
  const int64_t* ids = b.make<int64_t>(tokens, [&] { return id = (id * 7 + 3) % decoder.vocab; });
  const Step step = {tokens, 2, kTableWidth, 2, ids, positions, slots, rows, starts, tables,
                     b.make<float>(tokens * half, [] { return 0.8f; }),
                     b.make<float>(tokens * half, [] { return 0.6f; }), logits.data()};
  if (nm_forward(engine, &decoder, &cache, &step) != 0) std::abort();
  for (const float x : logits)
    if (!std::isfinite(x)) std::abort();
  return logits;
}

void run(const Shape& s, int set, int threads, bool int8, KvKind kv) {
  Buffers b;
  const std::vector<Layer> layers = {make_layer(b, s, false), make_layer(b, s, s.odd)};
  const Decoder decoder = {2, s.hidden, s.heads, s.kv_heads, s.width, s.vocab, layers.data(),
                           b.norm(s.hidden, s.odd), b.matrix(s.vocab, s.hidden, kFloat16, false),
                           b.matrix(s.vocab, s.hidden, kFloat16, s.odd)};
  const int64_t rows = 2 * kBlocks * s.kv_heads * kBlockSize, bytes = kv == kKvFloat32 ? 4 : 3 - kv;
  const auto page = [&] { return b.make<uint8_t>(rows * s.width * bytes, [] { return 0; }); };
  const auto scales = [&] { return kv == kKvInt8 ? b.floats(rows) : nullptr; };
  const Cache cache = {page(), page(), scales(), scales(), kv, kBlocks, kBlockSize};
  void* engine = nm_open(set, threads, int8);
  if (engine == nullptr) std::abort();
  for (const int64_t first : {1, 3, 11}) {
    const std::vector<float> once = run_step(engine, decoder, cache, 0, first);
    if (once != run_step(engine, decoder, cache, 0, first)) std::abort();
    run_step(engine, decoder, cache, first, 7);
  }
  nm_read(engine, static_cast<const uint8_t*>(cache.keys), rows * s.width * bytes);
  nm_close(engine);
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {64, 4, 2, 32, 64, 4, 2, 50, 0, false},
      {192, 6, 2, 64, 128, 5, 2, 33, 5, true},
      {128, 2, 1, 64, 64, 3, 1, 17, 0, true},
  };
  int runs = 0;
  for (int set = 0; set < kSetCount; ++set) {
    if (!set_runs(set)) continue;
    for (const Shape& shape : shapes)
      for (const int threads : {1, 3})
        for (const bool int8 : {false, true})
          for (const KvKind kv : {kKvFloat32, kKvBfloat16, kKvInt8}) {
            run(shape, set, threads, int8, kv);
            ++runs;
          }
  }
  std::printf("%d decoders ran\n", runs);
  return 0;
}
