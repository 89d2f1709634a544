// h <- dA h + dBx, y = sum over N of h C.  dA, dBx [B, D, T, 16], C [B, T, 16], y [B, D, T].
// Bound by memory: the state of one channel is one register, both streams are read in
// order, and sixteen sums over N are taken together by a transposing tree of additions.
#include "vec.h"

typedef int i16 __attribute__((vector_size(64)));

// One level of the tree: pairs of entries of x and y, M apart, added.
template <int M>
static inline v16 halve(v16 x, v16 y) {
  i16 low, high;
  for (int i = 0; i < 16; ++i) {
    const int lane = i & M ? (i & ~M) + 16 : i;
    low[i] = lane;
    high[i] = lane + M;
  }
  return __builtin_shuffle(x, y, low) + __builtin_shuffle(x, y, high);
}

extern "C" void selective_scan(const float* da, const float* dbx, const float* c, float* y, int64_t B, int64_t D,
                               int64_t T, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < B * D; ++row) {
    const float *a = da + row * T * 16, *b = dbx + row * T * 16, *ct = c + row / D * T * 16;
    v16 h = {};
    int64_t t = 0;
    for (; t + 16 <= T; t += 16) {
      v16 p[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        h = load(a + (t + i) * 16) * h + load(b + (t + i) * 16);
        p[i] = h * load(ct + (t + i) * 16);
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) p[i] = halve<1>(p[2 * i], p[2 * i + 1]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) p[i] = halve<2>(p[2 * i], p[2 * i + 1]);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) p[i] = halve<4>(p[2 * i], p[2 * i + 1]);
      store(y + row * T + t, halve<8>(p[0], p[1]));
    }
    for (; t < T; ++t) {
      h = load(a + t * 16) * h + load(b + t * 16);
      const v16 p = h * load(ct + t * 16);
      float sum = 0;
      for (int n = 0; n < 16; ++n) sum += p[n];
      y[row * T + t] = sum;
    }
  }
}
