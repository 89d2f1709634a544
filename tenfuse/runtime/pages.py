"""Huge pages for large results.

Takes a tensor that was just allocated; asks Linux (``madvise``) to back it by huge pages.
A large tensor that is allocated anew at every call otherwise costs one page fault per
4 KiB, which for memory-bound loops is more than the loop itself.  Advice only: where the
system does not take it, nothing changes.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any

import torch

SMALLEST = 4 << 20
"""Bytes from which on a tensor is worth the call."""

_PAGE = 2 << 20
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


@functools.cache
def _madvise() -> Any:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def advise(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, its memory asked to be in huge pages if it is large and on the CPU."""
    if tensor.device.type != "cpu" or _ADVICE is None:
        return tensor
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if size < SMALLEST or _madvise() is None:
        return tensor
    first = -(-storage.data_ptr() // _PAGE) * _PAGE
    length = (storage.data_ptr() + size - first) // _PAGE * _PAGE
    if length > 0:
        _madvise()(first, length, _ADVICE)
    return tensor
