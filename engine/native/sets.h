// The instruction sets that this build knows, by number; a number is for ever.
#pragma once

#include "loops.h"

namespace novamesh {

constexpr int kSetCount = 6;          // scalar, avx2, avxvnni, avx512, avx512vnni, neon

bool set_runs(int set);               // on this CPU
const Loops& loops_of(int set);       // of one that runs

}  // namespace novamesh
