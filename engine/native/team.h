// A team of threads that share out the parts of one operation after another.
//
// Rules: the caller is one of the team and works too; parts are taken from one word, and the caller
// waits for parts, never for threads: one that the system does not run costs its help and nothing
// else. Between operations threads look for kLooks, then sleep until they are called. One caller.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace novamesh {

class Team {
 public:
  static constexpr int64_t kPartsMax = (1 << 20) - 1;

  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(others_.size()) + 1; }

  // Calls part(i, worker) once for every i below count (at most kPartsMax), worker in
  // [0, threads()); returns when all are done. `part` must not throw.
  template <typename Part>
  void share(int64_t count, const Part& part) {
    if (others_.empty() || count < 2) {
      for (int64_t i = 0; i < count; ++i) part(i, 0);
      return;
    }
    run(count, [](const void* what, int64_t i, int worker) {
      (*static_cast<const Part*>(what))(i, worker);
    }, &part);
  }

 private:
  using Call = void (*)(const void*, int64_t, int);

  void run(int64_t count, Call call, const void* what);
  void serve(int worker);
  bool work(int worker);
  bool parts_left() const;

  // Round, parts of the round, next part, in one word: who comes late takes no part of one round
  // for one of another.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};       // parts of this round that are finished
  Call call_ = nullptr;
  const void* what_ = nullptr;
  std::atomic<bool> over_{false};
  std::atomic<int> asleep_{0};
  std::mutex mutex_;
  std::condition_variable called_;
  std::vector<std::thread> others_;
};

}  // namespace novamesh
