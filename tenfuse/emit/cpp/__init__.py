"""StepProgram to plain C++: pure text, no torch, nothing is run."""

from tenfuse.emit.cpp.isa import AVX2, AVX512, NEON, SSE, Isa
from tenfuse.emit.cpp.source import emit

__all__ = ["AVX2", "AVX512", "NEON", "SSE", "Isa", "emit"]
