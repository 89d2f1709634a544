// S <- e^g S;  u = beta (v - S^T k);  S <- S + k u^T;  o = S^T q.
// q, k, v, o [H, T, 64], g and beta [H, T] (H counts batch times heads).
// S lives in L1.  One pass over S per step: while it is updated for step t, the products
// with q_t and with k_{t+1} are taken from the same registers.
#include <cmath>

#include "vec.h"

constexpr int N = 64, V = N / 16;

extern "C" void gated_delta(const float* q, const float* k, const float* v, const float* beta, const float* g,
                            float* o, int64_t H, int64_t T, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t h = 0; h < H; ++h) {
    alignas(64) float s[N * N] = {};
    const float *qh = q + h * T * N, *kh = k + h * T * N, *vh = v + h * T * N;
    v16 read[V] = {};
    for (int64_t t = 0; t < T; ++t) {
      const float decay = std::exp(g[h * T + t]);
      const float *qt = qh + t * N, *kt = kh + t * N, *ahead = t + 1 < T ? kt + N : kt;
      v16 u[V], out[V] = {}, next[V] = {};
      for (int j = 0; j < V; ++j) u[j] = beta[h * T + t] * (load(vh + t * N + 16 * j) - decay * read[j]);
      for (int i = 0; i < N; i += 2) {
#pragma GCC unroll 2
        for (int ii = i; ii < i + 2; ++ii) {
          const v16 ki = splat(kt[ii]), qi = splat(qt[ii]), ni = splat(ahead[ii]);
#pragma GCC unroll 4
          for (int j = 0; j < V; ++j) {
            float* place = s + ii * N + 16 * j;
            const v16 x = decay * load(place) + ki * u[j];
            store(place, x);
            out[j] += qi * x;
            next[j] += ni * x;
          }
        }
      }
      for (int j = 0; j < V; ++j) {
        store(o + (h * T + t) * N + 16 * j, out[j]);
        read[j] = next[j];
      }
    }
  }
}
