"""The fixed head of every kernel: vector types, loads and stores, functions.

Takes the compute dtype and the lanes; leaves C++ text.  Everything is overloaded for the
scalar ``T`` and the vector ``V``.  In f32 the transcendental functions are polynomials
within about 2 units in the last place, right at the infinities, at NaN and for results
that are denormal; in f64, and where speed does not matter, they call libm lane by lane.
"""

from __future__ import annotations

from tenfuse.emit.cpp import integers
from tenfuse.step.whole import COMPARISONS, NAMES

STORAGE = {
    "f32": "float", "f64": "double", "bf16": "bf16", "f16": "f16", "bool": "uint8_t", **integers.STORAGE,
}  # fmt: skip

_TYPES = """
#include <cstdint>
#include <cstring>
#include <cstdlib>
#include <cmath>
#ifdef _OPENMP
extern "C" int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif
#define FN static inline __attribute__((always_inline))
typedef @T T;
typedef @I I;
enum { W = @W };
typedef T V __attribute__((vector_size(W * sizeof(T))));
typedef I M __attribute__((vector_size(W * sizeof(T))));
typedef double VP __attribute__((vector_size(W * sizeof(T))));
typedef T VU __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
typedef float VF __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef uint32_t VW __attribute__((vector_size(W * 4)));
typedef float VFU __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint16_t VH __attribute__((vector_size(W * 2)));
typedef uint16_t VHU __attribute__((vector_size(W * 2), aligned(2), may_alias));
typedef uint8_t VB __attribute__((vector_size(W)));
typedef uint8_t VBU __attribute__((vector_size(W), aligned(1), may_alias));
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
static const T INF = (T)__builtin_inf();
static const T NOT = (T)__builtin_nan("");
FN V bc(T x) { return x - (V){}; }
FN V bc(V x) { return x; }
FN M bcm(bool m) { return (M){} - (I)m; }
FN M bcm(M m) { return m; }
FN V sel(M m, V a, V b) { return m ? a : b; }
FN V sel(bool m, V a, V b) { return m ? a : b; }
FN T sel(bool m, T a, T b) { return m ? a : b; }
FN VF self(VI m, VF a, VF b) { return m ? a : b; }
FN V num(M m) { return sel(m, bc((T)1), bc((T)0)); }
FN T num(bool m) { return (T)m; }
FN M truth(V x) { return x != bc((T)0); }
FN bool truth(T x) { return x != 0; }
FN M flip(M m) { return ~m; }
FN bool flip(bool m) { return !m; }
FN M is_nan(V x) { return x != x; }
FN bool is_nan(T x) { return x != x; }
#if defined(__AVX512F__) && @LINE <= 64
FN V once(V x) { asm("" : "+v"(x)); return x; }  // loaded once, whoever reads it
#else
FN V once(V x) { return x; }
#endif
FN void soon(const void* p, int64_t bytes) { __builtin_prefetch((const void*)((uintptr_t)p + bytes)); }
static const M LANE = {@LANE};
FN V keep(V x, int64_t n, T other) { return sel(LANE < (M){} + (I)n, x, bc(other)); }
"""

_MEMORY = """
FN VF widen(VW h) { return (VF)(h << 16); }
FN VW narrow(VF x) {
  VW u = (VW)x, r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (x == x) ? r : ((u >> 16) | 0x40u);
}
FN VF half_up(VW h) {
  VW e = h & 0x7fffu;
  VF tiny = __builtin_convertvector((VI)e, VF) * 0x1p-24f;
  VF value = (VF)((e << 13) + (112u << 23));
  value = self((VI)(e >= 0x7c00u), (VF)((e << 13) | (255u << 23)), value);
  value = self((VI)(e < 0x400u), tiny, value);
  return (VF)((VW)value | ((h & 0x8000u) << 16));
}
FN VW half_down(VF x) {
  VW u = (VW)x, s = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  VW normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  VW small = (VW)((VF)a + (VF)((VW){} + 0x3f000000u)) - 0x3f000000u;
  VW r = (a < (113u << 23)) ? small : normal;
  r = (a >= 0x477ff000u) ? ((VW){} + 0x7c00u) : r;
  r = (a > 0x7f800000u) ? ((VW){} + 0x7e00u) : r;
  return r | s;
}
FN float lane0(VF x) { return x[0]; }
FN VW splat(uint16_t h) { return (VW){} + (uint32_t)h; }
FN V up(VF x) { return __builtin_convertvector(x, V); }
FN VF down(V x) { return __builtin_convertvector(x, VF); }
FN V ld(const T* p) { return *(const VU*)p; }
FN V ld(const @OTHER* p) { V r; for (int i = 0; i < W; i++) r[i] = (T)p[i]; return r; }
FN V ld(const bf16* p) { return up(widen(__builtin_convertvector((VH)*(const VHU*)p, VW))); }
FN V ld(const f16* p) { return up(half_up(__builtin_convertvector((VH)*(const VHU*)p, VW))); }
FN V ld(const uint8_t* p) {
  VI b = __builtin_convertvector((VB)*(const VBU*)p, VI);
  return up(self(b != 0, (VF){} + 1.0f, (VF){}));
}
FN T ld1(const T* p) { return *p; }
FN T ld1(const @OTHER* p) { return (T)*p; }
FN T ld1(const bf16* p) { uint32_t u = (uint32_t)p->bits << 16; float f; memcpy(&f, &u, 4); return (T)f; }
FN T ld1(const f16* p) { return (T)lane0(half_up(splat(p->bits))); }
FN T ld1(const uint8_t* p) { return (T)(*p != 0); }
template <class S> FN V ldn(const S* p, int64_t n) {
  if (n >= W) return ld(p);
  S part[W]; memset(part, 0, sizeof part);
  for (int64_t i = 0; i < n; i++) part[i] = p[i];
  return ld(part);
}
template <class S> FN V lds(const S* p, int64_t s, int64_t n) {
  S part[W];
  if (n >= W) { for (int i = 0; i < W; i++) part[i] = p[i * s]; return ld(part); }
  memset(part, 0, sizeof part);
  for (int64_t i = 0; i < n; i++) part[i] = p[i * s];
  return ld(part);
}
FN void st(T* p, V x) { *(VU*)p = x; }
FN void st(@OTHER* p, V x) { for (int i = 0; i < W; i++) p[i] = (@OTHER)x[i]; }
FN void st(bf16* p, V x) { *(VHU*)p = __builtin_convertvector(narrow(down(x)), VH); }
FN void st(f16* p, V x) { *(VHU*)p = __builtin_convertvector(half_down(down(x)), VH); }
FN void st(uint8_t* p, V x) { for (int i = 0; i < W; i++) p[i] = x[i] != 0; }
#if defined(__AVX512F__) && !defined(__clang__) && @LINE == 64
FN void past(T* p, V x) { __builtin_ia32_movnt@NT(p, x); }
FN void settle() { __builtin_ia32_sfence(); }
#define PAST 1
#else
FN void past(T* p, V x) { st(p, x); }
FN void settle() {}
#define PAST 0
#endif
template <class S> FN void stf(S* p, V x, bool) { st(p, x); }
FN void stf(T* p, V x, bool far) {
  if (PAST && far && ((uintptr_t)p & 63) == 0) past(p, x);
  else st(p, x);
}
template <class S> FN void stn(S* p, V x, int64_t n) {
  if (n >= W) { st(p, x); return; }
  S part[W]; st(part, x);
  for (int64_t i = 0; i < n; i++) p[i] = part[i];
}
template <class S> FN void sts(S* p, int64_t s, V x, int64_t n) {
  S part[W]; st(part, x);
  if (n > W) n = W;
  for (int64_t i = 0; i < n; i++) p[i * s] = part[i];
}
FN void st1(T* p, T x) { *p = x; }
FN void st2(T* p, V x, int lane) {  // two lanes in one store
  if (sizeof(T) == 4) { const double both = ((VP)x)[lane / 2]; memcpy(p, &both, 8); }
  else { p[0] = x[lane]; p[1] = x[lane + 1]; }
}
FN void st1(@OTHER* p, T x) { *p = (@OTHER)x; }
FN void st1(bf16* p, T x) { p->bits = (uint16_t)narrow((VF){} + (float)x)[0]; }
FN void st1(f16* p, T x) { p->bits = (uint16_t)half_down((VF){} + (float)x)[0]; }
FN void st1(uint8_t* p, T x) { *p = x != 0; }
"""

_EXACT = """
FN V vmax(V a, V b) { return sel((a > b) | (a != a), a, b); }
FN T vmax(T a, T b) { return a > b || a != a ? a : b; }
FN V vmin(V a, V b) { return sel((a < b) | (a != a), a, b); }
FN T vmin(T a, T b) { return a < b || a != a ? a : b; }
FN V vabs(V x) { return (V)((M)x & ~(M)bc((T)-0.0)); }
FN T vabs(T x) { return std::fabs(x); }
FN V with_sign(V x, V s) { return (V)((M)x | ((M)s & (M)bc((T)-0.0))); }
FN V vsign(V x) { return num(x > bc((T)0)) - num(x < bc((T)0)); }
FN T vsign(T x) { return (T)(x > 0) - (T)(x < 0); }
#define EACH(name, call) \\
  FN T name(T x) { return call(x); } \\
  FN V name(V x) { V r; for (int i = 0; i < W; i++) r[i] = call(x[i]); return r; }
#define EACH2(name, call) \\
  FN T name(T x, T y) { return call(x, y); } \\
  FN V name(V x, V y) { V r; for (int i = 0; i < W; i++) r[i] = call(x[i], y[i]); return r; }
EACH(vsqrt, __builtin_sqrt@F)
EACH(vfloor, __builtin_floor@F)
EACH(vceil, __builtin_ceil@F)
EACH(vtrunc, __builtin_trunc@F)
EACH(vround, __builtin_nearbyint@F)
EACH(verf, __builtin_erf@F)
EACH(vatan, __builtin_atan@F)
EACH2(vatan2, __builtin_atan2@F)
EACH2(vpow, __builtin_pow@F)
FN V vrsqrt(V x) { return 1 / vsqrt(x); }
FN T vrsqrt(T x) { return 1 / vsqrt(x); }
FN V round_bf16(V x) { return up(widen(narrow(down(x)))); }
FN T round_bf16(T x) { return round_bf16(bc(x))[0]; }
FN V round_f16(V x) { return up(half_up(half_down(down(x)))); }
FN T round_f16(T x) { return round_f16(bc(x))[0]; }
FN V round_f32(V x) { return up(down(x)); }
FN T round_f32(T x) { return (T)(float)x; }
"""

_F64 = """
EACH(vexp, __builtin_exp)
EACH(vexp2, __builtin_exp2)
EACH(vexpm1, __builtin_expm1)
EACH(vlog, __builtin_log)
EACH(vlog2, __builtin_log2)
EACH(vlog1p, __builtin_log1p)
EACH(vsin, __builtin_sin)
EACH(vcos, __builtin_cos)
EACH(vtanh, __builtin_tanh)
"""

_F32 = """
#define SCALAR(name) FN T name(T x) { return name(bc(x))[0]; }
static const T MAGIC = 0x1.8p23f;
FN V exp_core(V f) {  // e^f - 1 for |f| <= ln(2)/2
  V p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  return p * (f * f) + f;
}
FN V two_to(M n) { return (V)((n + 127) << 23); }
FN V scaled(V y, M n) { M h = n >> 1; return y * two_to(h) * two_to(n - h); }
FN V vexp(V x) {
  x = sel(x > bc(89.0f), bc(89.0f), sel(x < bc(-105.0f), bc(-105.0f), x));
  V r = x * 1.44269504088896341f + MAGIC, n = r - MAGIC;
  V f = x - n * 0.693359375f; f = f + n * 2.12194440e-4f;
  return scaled(exp_core(f) + 1.0f, (M)r - (M)bc(MAGIC));
}
FN V vexp2(V x) {
  x = sel(x > bc(129.0f), bc(129.0f), sel(x < bc(-151.0f), bc(-151.0f), x));
  V r = x + MAGIC, n = r - MAGIC;
  return scaled(exp_core((x - n) * 0.693147180559945309f) + 1.0f, (M)r - (M)bc(MAGIC));
}
FN V vexpm1(V x) {
  V c = sel(x > bc(88.0f), bc(88.0f), sel(x < bc(-40.0f), bc(-40.0f), x));
  V r = c * 1.44269504088896341f + MAGIC, n = r - MAGIC;
  V f = c - n * 0.693359375f; f = f + n * 2.12194440e-4f;
  V s = two_to((M)r - (M)bc(MAGIC));
  V y = exp_core(f) * s + (s - 1.0f);
  return sel(x > bc(88.0f), vexp(x), sel(x == bc(0.0f), x, y));
}
FN V vlog(V x) {
  M small = x < bc(0x1p-126f);
  V y = sel(small, x * 0x1p23f, x);
  M bits = (M)y, e = ((bits >> 23) & 255) - 126;
  V m = (V)((bits & 0x7fffff) | 0x3f000000);
  M low = m < bc(0.707106781186547524f);
  e = e + low - (small & 23);
  m = sel(low, m + m, m) - 1.0f;
  V z = m * m, k = __builtin_convertvector(e, V);
  V p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * z + k * -2.12194440e-4f - 0.5f * z;
  V r = m + p + k * 0.693359375f;
  r = sel(x == bc(INF), bc(INF), r);
  r = sel(x == bc(0.0f), bc(-INF), r);
  return sel((x < bc(0.0f)) | (x != x), bc(NOT), r);
}
FN V vlog2(V x) { return vlog(x) * 1.44269504088896341f; }
FN V vlog1p(V x) {
  V u = 1.0f + x, r = vlog(u) + (x - (u - 1.0f)) / u;
  r = sel((u == bc(INF)) | (u == bc(0.0f)), vlog(u), r);
  return sel(u == bc(1.0f), x, r);
}
FN V vtanh(V x) {
  V a = vabs(x), z = x * x;
  V p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  V near = p * z * x + x, far = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
  return sel(x != x, x, sel(a < bc(0.625f), near, with_sign(far, x)));
}
FN V turn(V x, V n) {
  V r = x - n * 1.5703125f;
  r = r - n * 4.837512969970703125e-4f;
  return r - n * 7.54978995489188216e-8f;
}
FN V wave(V x, I shift) {  // sin(x + shift pi/2)
  V r = x * 0.636619772367581343f + MAGIC, n = r - MAGIC;
  M q = (M)r - (M)bc(MAGIC) + shift;
  V f = turn(x, n), z = f * f;
  V s = z * -1.9515295891e-4f + 8.3321608736e-3f;
  s = (s * z - 1.6666654611e-1f) * z * f + f;
  V c = z * 2.443315711809948e-5f - 1.388731625493765e-3f;
  c = (c * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  V y = sel((q & 1) != 0, c, s);
  return (V)((M)y ^ ((q & 2) << 30));
}
FN bool beyond(V x) {
  M m = ~(vabs(x) < bc(4000.0f));
  I any = 0;
  for (int i = 0; i < W; i++) any |= m[i];
  return any != 0;
}
EACH(sin_slow, __builtin_sinf)
EACH(cos_slow, __builtin_cosf)
FN V vsin(V x) { return __builtin_expect(beyond(x), 0) ? sin_slow(x) : sel(x == bc(0.0f), x, wave(x, 0)); }
FN V vcos(V x) { return __builtin_expect(beyond(x), 0) ? cos_slow(x) : wave(x, 1); }
SCALAR(vexp) SCALAR(vexp2) SCALAR(vexpm1) SCALAR(vlog) SCALAR(vlog2) SCALAR(vlog1p)
SCALAR(vtanh) SCALAR(vsin) SCALAR(vcos)
"""

_DERIVED = """
FN V vsigmoid(V x) {
  V e = vexp(-vabs(x)), r = 1 / (1 + e);
  return sel(x < bc((T)0), e * r, sel(x != x, x, r));
}
FN T vsigmoid(T x) { return vsigmoid(bc(x))[0]; }
FN V vlogaddexp(V a, V b) {
  V hi = vmax(a, b), d = -vabs(a - b);
  return sel((a == b) & (vabs(a) == bc(INF)), a, hi + vlog1p(vexp(d)));
}
FN T vlogaddexp(T a, T b) { return vlogaddexp(bc(a), bc(b))[0]; }
FN V vsoftplus(V x) { return vmax(x, bc((T)0)) + vlog1p(vexp(-vabs(x))); }
FN T vsoftplus(T x) { return vsoftplus(bc(x))[0]; }
FN V vrelu(V x) { return vmax(x, bc((T)0)); }
FN T vrelu(T x) { return vmax(x, (T)0); }
"""


def _folds(lanes: int) -> str:
    """Horizontal sum, maximum and minimum by halving."""
    lines = [
        "#if defined(__has_builtin)",
        "#if __has_builtin(__builtin_shufflevector)",
        "#define HALVES 1",
        "#endif",
        "#endif",
    ]
    for name, join in (("hsum", "{} + {}"), ("hmax", "vmax({}, {})"), ("hmin", "vmin({}, {})")):
        lines.append(f"FN T {name}(V x) {{")
        lines.append("#ifdef HALVES")
        width = lanes // 2
        while width:
            order = ", ".join(str((i % width) + (width if i < width else 0)) for i in range(lanes))
            lines.append(f"  x = {join.format('x', f'__builtin_shufflevector(x, x, {order})')};")
            width //= 2
        lines.append("  return x[0];\n#else")
        lines.append(
            f"  T r = x[0]; for (int i = 1; i < W; i++) r = {join.format('r', 'x[i]')}; return r;\n#endif\n}}"
        )
    return "\n".join(lines)


def _pairs(lanes: int, width: int, double: bool) -> tuple[list[int], list[int]]:
    """Lanes of two vectors, those of the second counted on, whose sums lie side by side.

    Single lanes of 32 bits are interleaved within 128 bits: a shuffle of one instruction, which
    multiply-adds do not wait for as they do for one of any lanes of two registers.
    """
    if width == 1 and not double and lanes >= 4:
        low = [i // 4 * 4 + i % 4 // 2 + i % 2 * lanes for i in range(lanes)]
        return low, [i + 2 for i in low]
    low = [(i & ~width) + lanes if i & width else i for i in range(lanes)]
    return low, [(i + lanes if i & width else i + width) for i in range(lanes)]


def _trees(lanes: int, double: bool) -> str:
    """``foldN``: the sums of N vectors at once, in the first N lanes (repeated)."""
    lines = []
    width = 1
    while width < lanes:
        low, high = _pairs(lanes, width, double)
        names = [f"{'xy'[i // lanes]}[{i % lanes}]" for i in range(2 * lanes)]
        entries = [f"{names[a]} + {names[b]}" for a, b in zip(low, high, strict=True)]
        pairs = [", ".join(map(str, order)) for order in (low, high)]
        lines += [
            f"FN V join{width}(V x, V y) {{",
            "#ifdef HALVES",
            f"  V a = __builtin_shufflevector(x, y, {pairs[0]});",
            f"  return a + __builtin_shufflevector(x, y, {pairs[1]});",
            "#else",
            f"  return (V){{{', '.join(entries)}}};",
            "#endif",
            "}",
        ]
        width *= 2
    count = 2
    while count <= lanes:
        names = [f"a{i}" for i in range(count)]
        lines.append(f"FN V fold{count}({', '.join('V ' + n for n in names)}) {{")
        width = 1
        while len(names) > 1:
            names = [f"join{width}({names[i]}, {names[i + 1]})" for i in range(0, len(names), 2)]
            width *= 2
        lines.append(f"  V x = {names[0]};")
        while width < lanes:
            lines.append(f"  x = join{width}(x, x);")
            width *= 2
        lines.append("  return x;\n}")
        count *= 2
    return "\n" + "\n".join(lines) + "\n"


def _square(lanes: int) -> str:
    """``square``: W rows of W entries copied with rows for columns, in as many registers."""
    mixed = [i // 2 + (lanes if i % 2 else 0) for i in range(lanes)]
    low, high = (", ".join(str(i + shift) for i in mixed) for shift in (0, lanes // 2))
    lines = [
        "template <class S, class R> FN void square(S* to, int64_t s, const R* from, int64_t r) {",
        "#ifdef HALVES",
        *(f"  V a{i} = ld(from + {i} * r);" for i in range(lanes)),
    ]
    before, after, width = "a", "b", 1
    while width < lanes:
        for i in range(lanes):
            pair = f"{before}{i // 2}, {before}{i // 2 + lanes // 2}"
            what = f"__builtin_shufflevector({pair}, {high if i % 2 else low})"
            lines.append(f"  {'V ' if width == 1 else ''}{after}{i} = {what};")
        before, after, width = after, before, 2 * width
    return "\n".join(
        [
            *lines,
            *(f"  st(to + {i} * s, {before}{i});" for i in range(lanes)),
            "#else",
            "  for (int i = 0; i < W; i++)",
            "    for (int j = 0; j < W; j++) st1(to + i * s + j, ld1(from + j * r + i));",
            "#endif",
            "}\n",
        ]
    )


def preamble(compute: str, lanes: int) -> str:
    """The head for one compute dtype."""
    double = compute == "f64"
    fill = {
        "@T": "double" if double else "float",
        "@I": "int64_t" if double else "int32_t",
        "@W": str(lanes),
        "@LANE": ", ".join(map(str, range(lanes))),
        "@OTHER": "float" if double else "double",
        "@F": "" if double else "f",
        "@LINE": str(lanes * (8 if double else 4)),
        "@NT": "pd512" if double else "ps512",
    }
    text = (
        _TYPES
        + _MEMORY
        + _EXACT
        + _folds(lanes)
        + _trees(lanes, double)
        + _square(lanes)
        + (_F64 if double else _F32)
        + _DERIVED
    )
    for key, value in fill.items():
        text = text.replace(key, value)
    return text.strip() + "\n"


_CALLS = {
    "abs": "vabs",
    "sign": "vsign",
    "exp": "vexp",
    "exp2": "vexp2",
    "expm1": "vexpm1",
    "log": "vlog",
    "log2": "vlog2",
    "log1p": "vlog1p",
    "sqrt": "vsqrt",
    "rsqrt": "vrsqrt",
    "sin": "vsin",
    "cos": "vcos",
    "tanh": "vtanh",
    "sigmoid": "vsigmoid",
    "erf": "verf",
    "atan": "vatan",
    "atan2": "vatan2",
    "pow": "vpow",
    "maximum": "vmax",
    "minimum": "vmin",
    "logaddexp": "vlogaddexp",
    "floor": "vfloor",
    "ceil": "vceil",
    "trunc": "vtrunc",
    "round": "vround",
    "round_bf16": "round_bf16",
    "round_f16": "round_f16",
    "round_f32": "round_f32",
    "root": "vsqrt",
    "clamp_min": "vmax",
    "clamp_max": "vmin",
    "relu": "vrelu",
    "softplus": "vsoftplus",
}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
BOOLEAN = frozenset(COMPARE) | frozenset(COMPARISONS) | {"logical_and", "logical_or", "logical_not", "isnan"}
_DIVIDES = frozenset({"idiv", "ifloordiv", "imod", "irest"})
COSTS = {
    "div": 4,
    "sqrt": 6,
    "rsqrt": 8,
    "pow": 60,
    "atan2": 60,
    "erf": 40,
    "atan": 40,
    "logaddexp": 40,
    "root": 6,
}
_CHEAP = (
    frozenset(_INFIX)
    | BOOLEAN
    | {
        "neg",
        "abs",
        "sign",
        "maximum",
        "minimum",
        "where",
        "cut",
        "sloped",
        "round_f32",
        "relu",
        "clamp_min",
        "clamp_max",
    }
)


def cost(fn: str) -> int:
    """Roughly the vector instructions a function takes."""
    if fn in NAMES:
        return 8 if fn in _DIVIDES else 2
    return 1 if fn in _CHEAP else COSTS.get(fn, 15)


def expression(fn: str, args: list[str]) -> str:
    """A numeric function; operands of named calls are all scalars or all vectors."""
    if fn in _INFIX:
        return f"{args[0]} {_INFIX[fn]} {args[1]}"
    if fn == "neg":
        return f"-{args[0]}"
    if fn in ("cut", "sloped", "whole"):
        return args[0]
    if fn in NAMES:
        return f"{fn}({', '.join(args)})"
    return f"{_CALLS[fn]}({', '.join(args)})"
