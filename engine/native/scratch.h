// Memory for the parts of an operation, one piece a thread, kept from call to call.
#pragma once

#include <cstddef>
#include <vector>

namespace novamesh {

class Scratch {                       // what it held does not outlive the next call
 public:
  explicit Scratch(int workers) : buffers_(workers) {}

  // At least `floats` floats, on a cache line's edge; throws std::bad_alloc.
  float* of(int worker, size_t floats) {
    std::vector<Line>& buffer = buffers_[worker];
    const size_t lines = (floats + kLine - 1) / kLine;
    if (buffer.size() < lines) {
      buffer = std::vector<Line>();   // the old one goes first: the two may not fit together
      buffer.resize(lines);
    }
    return reinterpret_cast<float*>(buffer.data());  // null where nothing was asked for
  }

  // A part may not throw: ask before parts are shared out.
  void reserve(size_t floats) {
    for (size_t worker = 0; worker < buffers_.size(); ++worker)
      of(static_cast<int>(worker), floats);
  }

 private:
  static constexpr size_t kLine = 16;
  struct alignas(64) Line { float floats[kLine]; };
  std::vector<std::vector<Line>> buffers_;
};

}  // namespace novamesh
