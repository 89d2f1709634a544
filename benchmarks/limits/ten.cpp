// (a, b) <- ((lr a - li b + beta) R, (lr b + li a) R), y = a.  beta, y [B, T, K], R [K, K];
// K a multiple of 32.  Bound by arithmetic: a task is eight batch rows, so a and b are two
// blocks of eight rows against R, in register tiles of 8 x 32.
#include <vector>

#include "vec.h"

constexpr int ROWS = 8, COLS = 32;

// out[ROWS][COLS of K] = z[ROWS][K] panel, where a panel is COLS columns of R, row by row.
static inline void product(const float* __restrict z, const float* __restrict panel, float* __restrict out,
                           int64_t K) {
  v16 left[ROWS] = {}, right[ROWS] = {};
  for (int64_t k = 0; k < K; ++k) {
    const v16 r0 = load(panel + k * COLS), r1 = load(panel + k * COLS + 16);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const v16 x = splat(z[i * K + k]);
      left[i] += x * r0;
      right[i] += x * r1;
    }
  }
  for (int i = 0; i < ROWS; ++i) {
    store(out + i * K, left[i]);
    store(out + i * K + 16, right[i]);
  }
}

static std::vector<float> panels(const float* r, int64_t K) {
  std::vector<float> packed(K * K);
  for (int64_t j = 0; j < K; ++j)
    for (int64_t k = 0; k < K; ++k) packed[j / COLS * COLS * K + k * COLS + j % COLS] = r[k * K + j];
  return packed;
}

extern "C" void ten(const float* beta, const float* lr, const float* li, const float* r, float* y, int64_t B,
                    int64_t T, int64_t K, int threads) {
  const std::vector<float> packed = panels(r, K);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < B; first += ROWS) {
    const int64_t rows = B - first < ROWS ? B - first : ROWS;
    alignas(64) float a[ROWS * 1024] = {}, b[ROWS * 1024] = {}, za[ROWS * 1024] = {}, zb[ROWS * 1024] = {};
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t i = 0; i < rows; ++i) {
        const float* x = beta + ((first + i) * T + t) * K;
        for (int64_t k = 0; k < K; k += 16) {
          const v16 re = load(lr + k), im = load(li + k), ak = load(a + i * K + k), bk = load(b + i * K + k);
          store(za + i * K + k, re * ak - im * bk + load(x + k));
          store(zb + i * K + k, re * bk + im * ak);
        }
      }
      for (int64_t j = 0; j < K; j += COLS) {
        product(za, packed.data() + j * K, a + j, K);
        product(zb, packed.data() + j * K, b + j, K);
      }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < K; k += 16) store(y + ((first + i) * T + t) * K + k, load(a + i * K + k));
    }
  }
}
