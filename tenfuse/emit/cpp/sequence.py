"""Text that runs several things a call does, one after the other.

Takes nothing; leaves C++ text with the signature of a kernel: where the call's tensors start, a
table of parts, nothing, the number of parts, threads.  A part is its kind, its length in the
table, and

======= ==================================================================================
launch  function, strides, sizes (addresses), steps, operands; per operand (tensor, bytes)
zero    tensor, bytes from its start, bytes
sum     bytes of an entry, source (tensor, bytes), target (tensor, bytes), axes kept and
        added up; per axis kept (size, stride of source, of target), the last with source
        stride 1, and per axis added up (size, stride)
======= ==================================================================================

A sum is added to what its target holds.  It is made in double precision.
"""

from __future__ import annotations

LAUNCH, ZERO, SUM = range(3)
MOST = 256
"""Operands that a launch can have."""

_BODY = """\
#include <cstdint>
#include <cstring>
typedef int (*Kernel)(char* const*, const int64_t*, const int64_t*, int64_t, int);
enum { BLOCK = 128, ALONE = 1 << 15, PIECE = 1 << 18 };

static void zero(char* start, int64_t bytes, int threads) {
  #pragma omp parallel for schedule(static) num_threads(threads) if (bytes > 4 * PIECE)
  for (int64_t i = 0; i < bytes; i += PIECE)
    memset(start + i, 0, bytes - i < PIECE ? bytes - i : (int64_t)PIECE);
}

template <class T>
static void sum(char* target, const char* source, const int64_t* kept, int64_t n_kept,
                const int64_t* added, int64_t n_added, int threads) {
  const int64_t *last = kept + 3 * (n_kept - 1), n = last[0], step = last[2];
  int64_t rows = 1, terms = 1;
  for (int64_t i = 0; i < n_kept - 1; i++) rows *= kept[3 * i];
  for (int64_t i = 0; i < n_added; i++) terms *= added[2 * i];
  const int64_t blocks = (n + BLOCK - 1) / BLOCK;
  #pragma omp parallel for schedule(static) num_threads(threads) if (rows * n * terms > ALONE)
  for (int64_t task = 0; task < rows * blocks; task++) {
    const int64_t first = task % blocks * BLOCK, m = n - first < BLOCK ? n - first : (int64_t)BLOCK;
    const T* from = (const T*)source + first;
    T* into = (T*)target + first * step;
    int64_t row = task / blocks;
    for (int64_t i = n_kept - 2; i >= 0; i--) {
      from += row % kept[3 * i] * kept[3 * i + 1];
      into += row % kept[3 * i] * kept[3 * i + 2];
      row /= kept[3 * i];
    }
    double total[BLOCK] = {};
    for (int64_t term = 0; term < terms; term++) {
      const T* x = from;
      int64_t rest = term;
      for (int64_t i = n_added - 1; i >= 0; i--) {
        x += rest % added[2 * i] * added[2 * i + 1];
        rest /= added[2 * i];
      }
      if (m == BLOCK)
        for (int64_t j = 0; j < BLOCK; j++) total[j] += x[j];
      else
        for (int64_t j = 0; j < m; j++) total[j] += x[j];
    }
    for (int64_t j = 0; j < m; j++) into[j * step] = (T)(into[j * step] + total[j]);
  }
}

extern "C" int kernel(char* const* starts, const int64_t* part, const int64_t*, int64_t count, int threads) {
  char* operands[MOST];
  for (int64_t n = 0; n < count; n++, part += part[1]) {
    const int64_t* p = part + 2;
    if (part[0] == 0) {
      for (int64_t i = 0; i < p[4]; i++) operands[i] = starts[p[5 + 2 * i]] + p[6 + 2 * i];
      if (int failed = ((Kernel)p[0])(operands, (const int64_t*)p[1], (const int64_t*)p[2], p[3], threads))
        return failed;
    } else if (part[0] == 1) {
      zero(starts[p[0]] + p[1], p[2], threads);
    } else {
      auto add = p[0] == 4 ? sum<float> : sum<double>;
      const int64_t* kept = p + 7;
      add(starts[p[3]] + p[4], starts[p[1]] + p[2], kept, p[5], kept + 3 * p[5], p[6], threads);
    }
  }
  return 0;
}
"""

TEXT = f"enum {{ MOST = {MOST} }};\n" + _BODY

__all__ = ["LAUNCH", "MOST", "SUM", "TEXT", "ZERO"]
