// Sixteen floats at a time, through the compiler's vector extensions.
#pragma once
#include <cstdint>
#include <cstring>

typedef float v16 __attribute__((vector_size(64)));

static inline v16 load(const float* p) {
  v16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(float* p, v16 v) { std::memcpy(p, &v, sizeof v); }

static inline v16 splat(float x) { return x - v16{}; }
