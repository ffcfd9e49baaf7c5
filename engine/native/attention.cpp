// How attention is shared out: what a worker of the team gets is a kv head of a sequence and either
// kSplit rows of a lone token's context, or a few panels of a chunk's queries.
#include "attention.h"

#include <algorithm>
#include <limits>

namespace novamesh {
namespace {

constexpr int64_t kPanelsMax = 4;     // panels that share the widening of a tile
constexpr int64_t kElementBytes[] = {4, 2, 1};  // by KvKind

struct Part {
  int64_t sequence, head;             // head: of keys and values
  int64_t first, count;               // positions of a lone token's context; rows of a chunk
  int64_t splits;                     // that the lone token has; 0: a chunk
  int64_t result;                     // of a split, where it goes, in floats
};

struct Lone {                         // a lone token and kv head of several splits
  int64_t token, head, splits, result;
};

struct Job {
  const AttentionLoops& loops;
  const AttentionShape& shape;
  const KvLayer& layer;
  const AttentionBatch& batch;
  const float* query;
  int64_t stride;
  float* out;

  int64_t group() const { return shape.heads / shape.kv_heads; }
  int64_t tokens(int64_t sequence) const {
    return batch.starts[sequence + 1] - batch.starts[sequence];
  }
  int64_t first_seen(int64_t position) const {
    return shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
  }
  const float* query_of(int64_t token, int64_t head) const {
    return query + token * stride + head * shape.width;
  }
  float* out_of(int64_t token, int64_t head) const {
    return out + (token * shape.heads + head) * shape.width;
  }
};

bool tables_in_range(const Job& job, int64_t sequence) {
  const AttentionShape& s = job.shape;
  const int64_t begin = job.batch.starts[sequence], end = job.batch.starts[sequence + 1];
  if (begin == end) return true;
  int64_t low = std::numeric_limits<int64_t>::max(), high = -1;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t position = job.batch.positions[t];
    if (position < 0 || position / s.block_size >= s.table_width) return false;
    low = std::min(low, job.first_seen(position));
    high = std::max(high, position);
  }
  const int32_t* table = job.batch.tables + sequence * s.table_width;
  for (int64_t block = low / s.block_size; block <= high / s.block_size; ++block)
    if (table[block] < 0 || table[block] >= s.blocks) return false;
  return true;
}

bool in_range(const Job& job) {
  const AttentionShape& s = job.shape;
  if (s.kv_heads < 1 || s.heads < 1 || s.heads % s.kv_heads || s.width < 1) return false;
  if (s.block_size < 1 || s.window < 0 || s.sequences < 0) return false;
  if (job.layer.kind < kKvFloat32 || job.layer.kind > kKvInt8) return false;
  if (job.batch.starts[0] != 0 || job.batch.starts[s.sequences] != s.tokens) return false;
  for (int64_t q = 0; q < s.sequences; ++q)
    if (job.tokens(q) < 0) return false;
  for (int64_t q = 0; q < s.sequences; ++q)
    if (!tables_in_range(job, q)) return false;
  return true;
}

// The rows of positions [first, first + count) of a sequence, padded as Split has them.
void find_rows(const Job& job, int64_t sequence, int64_t head, int64_t first, int64_t count,
               int64_t* rows) {
  const int64_t size = job.shape.block_size;
  const int32_t* table = job.batch.tables + sequence * job.shape.table_width + first / size;
  int64_t offset = first % size;
  for (int64_t i = 0; i < count; ++table, offset = 0) {
    const int64_t page = (*table * job.shape.kv_heads + head) * size;
    for (; offset < size && i < count; ++offset) rows[i++] = page + offset;
  }
  for (int64_t i = count; i < round_up(count, kRowPad); ++i) rows[i] = rows[count - 1];
}

int64_t panel_room(int64_t panel, int64_t width) {
  return round_up(panel_floats(panel, width), 16);
}

// The parts of one call: none depends on another, and none's size on what else is in the batch.
class Plan {
 public:
  explicit Plan(const Job& job) : job_(job) {
    for (int64_t q = 0; q < job.shape.sequences; ++q)
      if (job.tokens(q) > 1) add_chunk(q);
    // The last panels of a chunk see the most: begun first, they are not waited for at the end.
    std::reverse(parts_.begin(), parts_.end());
    for (int64_t q = 0; q < job.shape.sequences; ++q)
      if (job.tokens(q) == 1) add_lone(q);
  }

  void run(Team& team, Scratch& scratch) {
    const int64_t threads = team.threads();
    float* workers = scratch.of(0, threads * worker_floats_ + result_floats_);
    results_ = workers + threads * worker_floats_;
    share(team, parts_, [&](const Part& part, int worker) {
      float* memory = workers + worker * worker_floats_;
      if (part.splits > 0) run_split(part, memory);
      else run_chunk(part, memory);
    });
    share(team, lones_, [&](const Lone& lone, int) { merge(lone); });
  }

 private:
  template <typename Item, typename Do>
  static void share(Team& team, const std::vector<Item>& items, const Do& run_one) {
    const int64_t count = static_cast<int64_t>(items.size());
    for (int64_t first = 0; first < count; first += Team::kPartsMax)
      team.share(std::min(Team::kPartsMax, count - first),
                 [&](int64_t i, int worker) { run_one(items[first + i], worker); });
  }

  void add_chunk(int64_t sequence) {
    const int64_t rows = job_.tokens(sequence) * job_.group();
    const int64_t step = kPanelsMax * job_.loops.panel;
    for (int64_t first = 0; first < rows; first += step)
      for (int64_t head = 0; head < job_.shape.kv_heads; ++head)
        parts_.push_back({sequence, head, first, std::min(step, rows - first), 0, 0});
    const int64_t width = job_.shape.width, panel = job_.loops.panel;
    worker_floats_ = std::max(worker_floats_, kTile * (2 * tile_stride(width) + panel) +
                                                  kPanelsMax * panel_room(panel, width));
  }

  void add_lone(int64_t sequence) {
    const int64_t token = job_.batch.starts[sequence], end = job_.batch.positions[token] + 1;
    const int64_t begin = job_.first_seen(end - 1), splits = (end - begin + kSplit - 1) / kSplit;
    const int64_t group = job_.group(), width = job_.shape.width;
    for (int64_t head = 0; head < job_.shape.kv_heads; ++head) {
      if (splits > 1) lones_.push_back({token, head, splits, result_floats_});
      for (int64_t first = begin; first < end; first += kSplit) {
        const int64_t count = std::min(kSplit, end - first);
        parts_.push_back({sequence, head, first, count, splits, result_floats_});
        result_floats_ += split_floats(group, width);
      }
    }
    worker_floats_ = std::max(worker_floats_, round_up(group * padded_width(width), 16));
  }

  void run_split(const Part& part, float* memory) const {
    int64_t rows[kSplit];
    find_rows(job_, part.sequence, part.head, part.first, part.count, rows);
    const int64_t token = job_.batch.starts[part.sequence], group = job_.group();
    job_.loops.split({&job_.layer, rows, part.count, job_.shape.width, group,
                      job_.query_of(token, part.head * group), job_.shape.scale, memory,
                      results_ + part.result});
    if (part.splits == 1) merge({token, part.head, 1, part.result});
  }

  void merge(const Lone& lone) const {
    Split first{};
    first.layer = &job_.layer;
    first.width = job_.shape.width;
    first.group = job_.group();
    first.result = results_ + lone.result;
    job_.loops.merge(first, lone.splits, job_.out_of(lone.token, lone.head * first.group));
  }

  void run_chunk(const Part& part, float* memory) const;

  const Job& job_;
  std::vector<Part> parts_;
  std::vector<Lone> lones_;
  int64_t worker_floats_ = 0, result_floats_ = 0;
  float* results_ = nullptr;
};

// A few panels of a chunk's queries: row r is query head r % group of the chunk's token r / group.
class Panels {
 public:
  Panels(const Job& job, const Part& part, float* memory) : job_(job), part_(part) {
    const int64_t size = job.loops.panel, width = job.shape.width;
    tile_ = {memory, memory + kTile * tile_stride(width), 0, tile_stride(width)};
    scores_ = memory + 2 * kTile * tile_stride(width);
    memory = scores_ + kTile * size;
    for (int64_t row = 0; row < part.count; row += size, memory += panel_room(size, width))
      open(part.first + row, std::min(size, part.count - row), memory);
  }

  void run() {
    // Tiles begin at multiples of kTile, whatever the chunk: so a chunk's cut changes no sum.
    const int64_t seen = job_.first_seen(low_);
    for (int64_t first = seen / kTile * kTile; first <= high_; first += kTile) {
      read_tile(first, seen, std::min(kTile, high_ + 1 - first));
      for (int64_t p = 0; p < count_; ++p) meet(seats_[p], first);
    }
    for (int64_t p = 0; p < count_; ++p) job_.loops.close(seats_[p].panel, seats_[p].outs);
  }

 private:
  struct Seat {
    Panel panel;
    int64_t low, high;                // the least and the greatest position
    int64_t positions[kPanelRowsMax];
    float* outs[kPanelRowsMax];
  };

  void open(int64_t first, int64_t rows, float* memory) {
    Seat& seat = seats_[count_++];
    const int64_t size = job_.loops.panel, width = job_.shape.width, group = job_.group();
    float* ends = memory + size * (width + round_up(width, 8));
    seat.panel = {rows, width, memory, memory + size * width, ends, ends + size,
                  ends + 2 * size, ends + 3 * size, false};
    const float* queries[kPanelRowsMax];
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = job_.batch.starts[part_.sequence] + (first + row) / group;
      const int64_t head = part_.head * group + (first + row) % group;
      queries[row] = job_.query_of(token, head);
      seat.outs[row] = job_.out_of(token, head);
      seat.positions[row] = job_.batch.positions[token];
    }
    seat.low = *std::min_element(seat.positions, seat.positions + rows);
    seat.high = *std::max_element(seat.positions, seat.positions + rows);
    low_ = std::min(low_, seat.low);
    high_ = std::max(high_, seat.high);
    job_.loops.open(seat.panel, queries, job_.shape.scale);
  }

  void read_tile(int64_t first, int64_t seen, int64_t count) {
    int64_t rows[kTile + kRowPad];
    // Before a window there may be no page any more: nobody sees what stands there instead.
    const int64_t unseen = std::max<int64_t>(0, seen - first);
    find_rows(job_, part_.sequence, part_.head, first + unseen, count - unseen, rows + unseen);
    std::fill(rows, rows + unseen, rows[unseen]);
    tile_.count = count;
    job_.loops.widen(job_.layer, rows, job_.shape.width, tile_);
  }

  void meet(Seat& seat, int64_t first) {
    Tile tile = tile_;
    tile.count = std::min(tile.count, seat.high + 1 - first);
    if (tile.count <= 0 || first + tile.count <= job_.first_seen(seat.low)) return;
    const int64_t window = job_.shape.window;
    seat.panel.hides = first + tile.count - 1 > seat.low ||
                       (window > 0 && first <= seat.high - window);
    if (seat.panel.hides) {
      for (int64_t row = 0; row < job_.loops.panel; ++row) {
        const int64_t position = seat.positions[std::min(row, seat.panel.rows - 1)] - first;
        seat.panel.high[row] = static_cast<float>(position);
        seat.panel.low[row] = window > 0 ? static_cast<float>(position - window) : -1.0f;
      }
    }
    job_.loops.meet(seat.panel, tile, scores_);
  }

  const Job& job_;
  const Part& part_;
  Tile tile_;
  float* scores_;
  Seat seats_[kPanelsMax];
  int64_t count_ = 0, low_ = std::numeric_limits<int64_t>::max(), high_ = -1;
};

void Plan::run_chunk(const Part& part, float* memory) const { Panels(job_, part, memory).run(); }

}  // namespace

bool attend(const AttentionLoops& loops, Team& team, const AttentionShape& shape,
            const KvLayer& layer, const AttentionBatch& batch, const float* query, int64_t stride,
            float* out, Scratch& scratch) {
  const Job job{loops, shape, layer, batch, query, stride, out};
  if (!in_range(job)) return false;
  Plan(job).run(team, scratch);
  return true;
}

bool write_kv(const AttentionLoops& loops, const AttentionShape& shape, const KvLayer& layer,
              const int64_t* slots, const float* keys, const float* values, int64_t stride) {
  const int64_t size = shape.block_size, width = shape.width;
  for (int64_t t = 0; t < shape.tokens; ++t)
    if (slots[t] < 0 || slots[t] / size >= shape.blocks) return false;
  float unused;
  const auto narrow = [&](const float* from, void* to, float* scales, int64_t row) {
    uint8_t* at = static_cast<uint8_t*>(to) + row * width * kElementBytes[layer.kind];
    loops.narrow(layer.kind, from, width, at, scales ? scales + row : &unused);
  };
  for (int64_t t = 0; t < shape.tokens; ++t)
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const int64_t row = (slots[t] / size * shape.kv_heads + head) * size + slots[t] % size;
      narrow(keys + t * stride + head * width, layer.keys, layer.key_scales, row);
      narrow(values + t * stride + head * width, layer.values, layer.value_scales, row);
    }
  return true;
}

}  // namespace novamesh
