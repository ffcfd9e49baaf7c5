#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace novamesh {
namespace {

constexpr int kLooks = 20000;         // about 100 us: longer than any gap within a step
constexpr int kPartBits = 20;
constexpr uint64_t kPartMask = (1u << kPartBits) - 1;

inline void rest() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

inline uint64_t part_of(uint64_t ticket) { return ticket & kPartMask; }
inline uint64_t parts_of(uint64_t ticket) { return ticket >> kPartBits & kPartMask; }
inline uint64_t round_of(uint64_t ticket) { return ticket >> 2 * kPartBits; }

}  // namespace

Team::Team(int threads) {
  for (int worker = 1; worker < threads; ++worker)
    others_.emplace_back([this, worker] { serve(worker); });
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    over_ = true;
  }
  called_.notify_all();
  for (std::thread& other : others_) other.join();
}

void Team::run(int64_t count, Call call, const void* what) {
  call_ = call;                       // read only by whoever has a ticket of this round
  what_ = what;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t round = round_of(ticket_.load(std::memory_order_relaxed)) + 1;
  ticket_.store(round << 2 * kPartBits | static_cast<uint64_t>(count) << kPartBits);
  if (asleep_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    called_.notify_all();
  }
  work(0);
  for (int looks = 0; done_.load(std::memory_order_acquire) < count; ++looks)
    looks < kLooks ? rest() : std::this_thread::yield();
}

bool Team::parts_left() const {
  const uint64_t ticket = ticket_.load();
  return part_of(ticket) < parts_of(ticket);
}

// Works until no part is left; whether there was one.
bool Team::work(int worker) {
  bool worked = false;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (part_of(ticket) < parts_of(ticket)) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    call_(what_, static_cast<int64_t>(part_of(ticket)), worker);
    done_.fetch_add(1, std::memory_order_release);
    worked = true;
    ticket = ticket_.load(std::memory_order_acquire);
  }
  return worked;
}

void Team::serve(int worker) {
  while (!over_) {
    if (work(worker)) continue;
    int looks = 0;
    while (!parts_left() && !over_ && ++looks < kLooks) rest();
    if (looks < kLooks) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1);
    called_.wait(lock, [this] { return parts_left() || over_; });
    asleep_.fetch_sub(1);
  }
}

}  // namespace novamesh
