// The C interface of libnovamesh_kernels, which kernels/native.py calls.
//
// A handle is one engine's threads and memory; one call at a time. Nothing is thrown across the
// interface: 0 is done, -1 out of memory, -2 an index out of range. The caller brings buffers that
// hold what the comments say, with the types and order of the structs of decoder.h.
#include <new>

#include "decoder.h"
#include "sets.h"

#define NM_API extern "C" __attribute__((visibility("default")))

using namespace novamesh;

namespace {

constexpr int kDone = 0, kOutOfMemory = -1, kOutOfRange = -2;

struct Engine {
  Machine machine;
  Forward forward;
  Operands operands;
  Products products;
  Routing routing;
  Mlp mlp;

  Engine(const Loops& loops, int threads, bool int8)
      : machine(loops, threads, int8), forward(machine) {}
};

template <typename Work>
int guarded(const Work& work) {
  try {
    return work() ? kDone : kOutOfRange;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

}  // namespace

NM_API int nm_abi_version() { return 3; }

NM_API int nm_set_runs(int set) { return set_runs(set); }

// Null: no memory, no threads, or no such set.
NM_API void* nm_open(int set, int threads, int int8) {
  if (!set_runs(set) || threads < 1) return nullptr;
  try {
    return new Engine(loops_of(set), threads, int8 != 0);
  } catch (const std::exception&) {
    return nullptr;
  }
}

NM_API void nm_close(void* engine) { delete static_cast<Engine*>(engine); }

NM_API int nm_forward(void* engine, const Decoder* decoder, const Cache* cache,
                      const Step* step) {
  return guarded(
      [&] { return static_cast<Engine*>(engine)->forward.run(*decoder, *cache, *step); });
}

// x [tokens, width] times a matrix, to out [tokens, rows].
NM_API int nm_linear(void* engine, const Matrix* matrix, const float* x, int64_t tokens,
                     float* out) {
  return guarded([&] {
    Engine& e = *static_cast<Engine*>(engine);
    e.operands.prepare(e.machine, matrix->kind, x, matrix->width, tokens, matrix->width);
    e.products.add(*matrix, e.operands, out, tokens);
    e.products.run(e.machine);
    return true;
  });
}

// x [tokens, hidden] to factors and ids [tokens, slots].
NM_API int nm_route(void* engine, const Router* router, const float* x, int64_t tokens,
                    float* factors, int64_t* ids) {
  return guarded([&] {
    Engine& e = *static_cast<Engine*>(engine);
    e.routing.run(e.machine, *router, x, tokens, factors, ids);
    return true;
  });
}

// out [tokens, hidden] += the routed experts of x [tokens, hidden].
NM_API int nm_experts(void* engine, const Stack* stack, const float* x, int64_t tokens,
                      int64_t slots, const int64_t* ids, const float* factors, float* out) {
  return guarded([&] {
    Engine& e = *static_cast<Engine*>(engine);
    return e.mlp.run(e.machine, *stack, x, tokens, slots, ids, factors, out);
  });
}

// Rows of x [tokens, width], normalised.
NM_API int nm_normalise(void* engine, const Norm* norm, const float* x, int64_t tokens,
                        float* out) {
  const Loops& loops = static_cast<Engine*>(engine)->machine.loops;
  for (int64_t t = 0; t < tokens; ++t)
    normalise(loops, *norm, x + t * norm->width, out + t * norm->width);
  return kDone;
}

// Attention of queries [tokens, heads * width] over one layer's pages.
NM_API int nm_attend(void* engine, const AttentionShape* shape, const KvLayer* layer,
                     const AttentionBatch* batch, const float* query, float* out) {
  return guarded([&] {
    Machine& machine = static_cast<Engine*>(engine)->machine;
    return attend(*machine.loops.attention, machine.team, *shape, *layer, *batch, query,
                  shape->heads * shape->width, out, machine.scratch);
  });
}

// Keys and values [tokens, kv_heads * width] into one layer's pages.
NM_API int nm_write_kv(void* engine, const AttentionShape* shape, const KvLayer* layer,
                       const int64_t* slots, const float* keys, const float* values) {
  const Machine& machine = static_cast<Engine*>(engine)->machine;
  const bool done = write_kv(*machine.loops.attention, *shape, *layer, slots, keys, values,
                             shape->kv_heads * shape->width);
  return done ? kDone : kOutOfRange;
}

// Reads `count` bytes with all threads; the sum means nothing.
NM_API uint64_t nm_read(void* engine, const uint8_t* bytes, int64_t count) {
  constexpr int64_t kPart = 1 << 20;
  Machine& machine = static_cast<Engine*>(engine)->machine;
  std::atomic<uint64_t> sum{0};
  machine.team.share((count + kPart - 1) / kPart, [&](int64_t part, int) {
    const int64_t left = count - part * kPart;
    sum += machine.loops.read(bytes + part * kPart, left < kPart ? left : kPart);
  });
  return sum;
}
