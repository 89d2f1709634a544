"""The head of a kernel that has integers: 64-bit vectors beside those of numbers.

Takes nothing; leaves C++ text that stands after the preamble.  ``Z`` is an integer and ``ZV`` a
vector of as many as a vector has numbers; both are overloads of the preamble's loads, stores,
choices and folds.  Arithmetic wraps; a quotient by minus one is a negation, since the smallest
integer has no positive counterpart.  The reader refuses divisors that may be zero; by zero are
divided only the lanes past the end of a vector, which must not trap.
"""

from __future__ import annotations

HEAD = """
typedef int64_t Z;
typedef uint64_t U;
typedef Z ZV __attribute__((vector_size(W * 8)));
typedef U UV __attribute__((vector_size(W * 8)));
typedef Z ZU __attribute__((vector_size(W * 8), aligned(8), may_alias));
struct u8 { uint8_t bits; operator Z() const { return bits; } };
static const Z LEAST = INT64_MIN, MOST = INT64_MAX;
static const ZV PLACE = {@LANE};
FN ZV bc(Z x) { return x - (ZV){}; }
FN ZV bc(ZV x) { return x; }
FN ZV sel(M m, ZV a, ZV b) { return __builtin_convertvector(m, ZV) ? a : b; }
FN ZV sel(bool m, ZV a, ZV b) { return m ? a : b; }
FN Z sel(bool m, Z a, Z b) { return m ? a : b; }
FN ZV keep(ZV x, int64_t n, Z other) { return PLACE < bc(n) ? x : bc(other); }
FN ZV ld(const Z* p) { return *(const ZU*)p; }
FN Z ld1(const Z* p) { return *p; }
FN void st(Z* p, ZV x) { *(ZU*)p = x; }
FN void st1(Z* p, Z x) { *p = x; }
#define NARROW(S, to) \\
  FN ZV ld(const S* p) { ZV r; for (int i = 0; i < W; i++) r[i] = (Z)p[i]; return r; } \\
  FN Z ld1(const S* p) { return (Z)*p; } \\
  FN void st1(S* p, Z x) { *p = to; } \\
  FN void st(S* p, ZV x) { for (int i = 0; i < W; i++) st1(p + i, x[i]); }
NARROW(int32_t, (int32_t)x)
NARROW(int16_t, (int16_t)x)
NARROW(int8_t, (int8_t)x)
NARROW(u8, (u8{(uint8_t)x}))
#define PARTIAL(S) \\
  FN ZV lds(const S* p, int64_t s, int64_t n) { \\
    ZV r = {}; \\
    for (int i = 0; i < W && i < n; i++) r[i] = ld1(p + i * s); \\
    return r; \\
  } \\
  FN ZV ldn(const S* p, int64_t n) { return n >= W ? ld(p) : lds(p, 1, n); } \\
  FN void sts(S* p, int64_t s, ZV x, int64_t n) { \\
    for (int i = 0; i < W && i < n; i++) st1(p + i * s, x[i]); \\
  } \\
  FN void stn(S* p, ZV x, int64_t n) { if (n >= W) st(p, x); else sts(p, 1, x, n); } \\
  FN void stf(S* p, ZV x, bool) { st(p, x); }
PARTIAL(Z) PARTIAL(int32_t) PARTIAL(int16_t) PARTIAL(int8_t) PARTIAL(u8)
FN Z truncated(T x) { return (Z)x; }
FN ZV truncated(V x) { return __builtin_convertvector(x, ZV); }
FN T number(Z x) { return (T)x; }
FN V number(ZV x) { return __builtin_convertvector(x, V); }
#define COMPARE(name, sign) \\
  FN bool name(Z a, Z b) { return a sign b; } \\
  FN M name(ZV a, ZV b) { return __builtin_convertvector(a sign b, M); }
COMPARE(ilt, <) COMPARE(ile, <=) COMPARE(igt, >) COMPARE(ige, >=) COMPARE(ieq, ==) COMPARE(ine, !=)
#define WRAPPING(name, sign) \\
  FN Z name(Z a, Z b) { return (Z)((U)a sign (U)b); } \\
  FN ZV name(ZV a, ZV b) { return (ZV)((UV)a sign (UV)b); }
WRAPPING(iadd, +) WRAPPING(isub, -) WRAPPING(imul, *) WRAPPING(iand, &) WRAPPING(ior, |) WRAPPING(ixor, ^)
template <int N> FN Z iexact(Z a) { return (Z)((U)a << N) >> N; }
template <int N> FN ZV iexact(ZV a) { return (ZV)((UV)a << N) >> N; }
#define ONE(name, expression) \\
  FN Z name(Z a) { return expression; } \\
  FN ZV name(ZV a) { return expression; }
#define BOTH(name, expression) \\
  FN Z name(Z a, Z b) { return expression; } \\
  FN ZV name(ZV a, ZV b) { return expression; }
#define TWO(name, expression) \\
  FN Z name(Z a, Z b) { return expression; } \\
  FN ZV name(ZV x, ZV y) { ZV r; for (int i = 0; i < W; i++) r[i] = name(x[i], y[i]); return r; }
ONE(ineg, isub(a ^ a, a))
ONE(iabs, a < 0 ? ineg(a) : a)
ONE(inot, ~a)
ONE(wrap32, iexact<32>(a))
ONE(wrap16, iexact<48>(a))
ONE(wrap8, iexact<56>(a))
ONE(wrapu8, a & 255)
BOTH(imax, a > b ? a : b)
BOTH(imin, a < b ? a : b)
TWO(idiv, b == 0 ? 0 : b == -1 ? ineg(a) : a / b)
TWO(irest, b == 0 || b == -1 ? 0 : a % b)
TWO(imod, irest(a, b) != 0 && (irest(a, b) < 0) != (b < 0) ? irest(a, b) + b : irest(a, b))
TWO(ifloordiv, idiv(a, b) - (irest(a, b) != 0 && (irest(a, b) < 0) != (b < 0)))
TWO(ileft, b < 0 || b > 63 ? 0 : (Z)((U)a << b))
TWO(iright, a >> (b < 0 || b > 63 ? 63 : b))
#define FOLD(name, join) \\
  FN Z name(ZV x) { Z r = x[0]; for (int i = 1; i < W; i++) r = join(r, x[i]); return r; }
FOLD(hsum, iadd) FOLD(hmax, imax) FOLD(hmin, imin)
"""

IDENTITY = {"sum": "(Z)0", "max": "LEAST", "min": "MOST"}
JOIN = {"sum": "iadd", "max": "imax", "min": "imin"}
STORAGE = {"i64": "int64_t", "i32": "int32_t", "i16": "int16_t", "i8": "int8_t", "u8": "u8"}


def head(lanes: int) -> str:
    return HEAD.replace("@LANE", ", ".join(map(str, range(lanes)))).strip() + "\n"


def literal(value: int) -> str:
    return "LEAST" if value == -(1 << 63) else f"(Z){value}LL" if value >= 0 else f"(-(Z){-value}LL)"


__all__ = ["IDENTITY", "JOIN", "STORAGE", "head", "literal"]
