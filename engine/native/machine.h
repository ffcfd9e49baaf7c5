// One engine's share of this computer: its loops, its threads, its memory between operations.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "loops.h"
#include "scratch.h"
#include "team.h"

namespace novamesh {

// Floats that stay allocated from one operation to the next, aligned to 64 bytes. They only grow;
// what a step may hold is bounded by the engine's max_step_tokens.
class Buffer {
 public:
  float* floats(int64_t count) { return static_cast<float*>(bytes(count * 4)); }

  void* bytes(int64_t count) {
    if (count > size_) {
      memory_.reset();
      size_ = 0;
      const size_t whole = (static_cast<size_t>(count) + 63) / 64 * 64;
      memory_.reset(std::aligned_alloc(64, whole));
      if (!memory_) throw std::bad_alloc();
      size_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t size_ = 0;
};

struct Machine {
  const Loops& loops;
  bool int8;                          // NF4 products round their activations
  Team team;
  Scratch scratch;

  Machine(const Loops& chosen, int threads, bool round)
      : loops(chosen), int8(round), team(threads), scratch(threads) {}
};

}  // namespace novamesh
