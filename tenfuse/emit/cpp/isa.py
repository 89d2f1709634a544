"""The machine an emitter writes for: vector width, vector registers, and threads.

Takes and leaves nothing else.  The text is plain C++ with the vector extensions that GCC
and Clang share, so an ``Isa`` only steers choices; any of them is correct anywhere.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Isa:
    name: str
    vector_bytes: int
    registers: int
    cores: int = 8
    """Threads that kernels will be run by, as far as is known when they are written."""

    def lanes(self, compute: str) -> int:
        return self.vector_bytes // (8 if compute == "f64" else 4)

    def narrow(self) -> Isa:
        """For steps that mix floats with integers of 64 bits: as many of both in a register each.

        Compilers convert between vectors that do not fit a register entry by entry.
        """
        return dataclasses.replace(self, vector_bytes=self.vector_bytes // 2)


AVX512 = Isa("avx512", 64, 32)
AVX2 = Isa("avx2", 32, 16)
SSE = Isa("sse", 16, 16)
NEON = Isa("neon", 16, 32)
