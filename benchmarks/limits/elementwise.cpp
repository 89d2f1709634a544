// h <- a h + b, y = h.  a, b, y [B, T, D]; D a multiple of 16.
// Bound by memory: whole rows are read in order, the state of one task stays in L1.
#include "vec.h"

extern "C" void elementwise(const float* a, const float* b, float* y, int64_t B, int64_t T, int64_t D,
                            int threads) {
  const int64_t tile = B >= threads || D % 512 ? D : 512;
  const int64_t tiles = D / tile;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < B * tiles; ++task) {
    alignas(64) float h[16384];
    std::memset(h, 0, tile * sizeof(float));
    const int64_t base = task / tiles * T * D + task % tiles * tile;
    for (int64_t t = 0; t < T; ++t) {
      const float* at = a + base + t * D;
      const float* bt = b + base + t * D;
      float* yt = y + base + t * D;
      for (int64_t d = 0; d < tile; d += 16) {
        const v16 next = load(at + d) * load(h + d) + load(bt + d);
        store(h + d, next);
        store(yt + d, next);
      }
    }
  }
}
