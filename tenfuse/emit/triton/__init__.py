"""Triton source from tile kernels."""

from tenfuse.emit.triton.kernel import emit, timed

__all__ = ["emit", "timed"]
