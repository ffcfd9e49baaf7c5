#include "sets.h"

#include "int8.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace novamesh {
namespace {

// The loops of one set, but for its int8 rows and tiles.
Loops with_int8(Loops loops, RowsInt8 rows, TileInt8 tile) {
  loops.rows_int8 = rows;
  loops.tile_int8 = tile;
  return loops;
}

#if defined(__x86_64__)
constexpr unsigned kAvxVnni = 1u << 4;  // CPUID 7.1, EAX; GCC 12 has no name to ask for it

bool has_avxvnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni);
}
#endif

}  // namespace

#if defined(__x86_64__)
bool set_runs(int set) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (set) {
    case 0: return true;
    case 1: return avx2;
    case 2: return avx2 && has_avxvnni();
    case 3: return avx512;
    case 4:
      return avx512 && __builtin_cpu_supports("avx512vnni") &&
             __builtin_cpu_supports("avx512vbmi");
    default: return false;
  }
}

const Loops& loops_of(int set) {
  static const Loops sets[kSetCount] = {
      kScalar,
      kAvx2,
      with_int8(kAvx2, rows_int8_avxvnni, nullptr),
      kAvx512,
      with_int8(kAvx512, rows_int8_avx512vnni, tile_avx512vnni),
      kScalar};
  return sets[set];
}
#elif defined(__aarch64__)
bool set_runs(int set) {
#if defined(__linux__)
  const bool dots = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  const bool dots = true;             // every Mac with ARM has them
#endif
  return set == 0 || (set == 5 && dots);
}

const Loops& loops_of(int set) {
  static const Loops neon = with_int8(kScalar, rows_int8_neon, nullptr);
  return set == 5 ? neon : kScalar;
}
#else
bool set_runs(int set) { return set == 0; }

const Loops& loops_of(int) { return kScalar; }
#endif

}  // namespace novamesh
