"""Hand-written loops: what an expert would write for one recurrence at one size, forward only.

Takes float32 contiguous tensors on the CPU; leaves the output.  Each function is one C++
file beside this one, built on first use with the compiler that torch's Inductor uses and
loaded by ctypes.  They are the limit that the generated kernels are measured against.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """The shared library of ``name``.cpp, rebuilt when its text or the flags change."""
    source = HERE / f"{name}.cpp"
    compiler = os.environ.get("CXX", "g++")
    key = hashlib.sha256(
        source.read_bytes() + (HERE / "vec.h").read_bytes() + repr((compiler, FLAGS)).encode()
    )
    place = Path(tempfile.gettempdir()) / f"tenfuse-limits-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    built = place / f"{name}-{key.hexdigest()[:16]}.so"
    if not built.exists():
        draft = built.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *FLAGS, str(source), "-o", str(draft)], check=True)
        draft.replace(built)
    return ctypes.CDLL(str(built))


def _call(name: str, function: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    for x in tensors:
        if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
            raise ValueError("the hand-written loops take contiguous float32 tensors on the CPU")
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in tensors]
    numbers = [ctypes.c_int64(n) for n in sizes]
    getattr(library(name), function)(*pointers, *numbers, ctypes.c_int(torch.get_num_threads()))


def elementwise(a: Tensor, b: Tensor) -> Tensor:
    """h <- a h + b; a, b and the result [B, T, D], D a multiple of 16."""
    y = torch.empty_like(a)
    _call("elementwise", "elementwise", (a, b, y), tuple(a.shape))
    return y


def ten(beta: Tensor, lr: Tensor, li: Tensor, r: Tensor) -> Tensor:
    """The TEN step; beta and the result [B, T, K], lr and li [K], r [K, K], K a multiple of 32 up to 1024."""
    y = torch.empty_like(beta)
    _call("ten", "ten", (beta, lr, li, r, y), tuple(beta.shape))
    return y


def gated_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    """q, k, v and the result [B, H, T, 64], beta and g [B, H, T]."""
    o = torch.empty_like(v)
    _call("delta", "gated_delta", (q, k, v, beta, g, o), (q.shape[0] * q.shape[1], q.shape[2]))
    return o


def selective_scan(da: Tensor, dbx: Tensor, c: Tensor) -> Tensor:
    """dA and dBx [B, D, T, 16], C [B, T, 16], the result [B, D, T]."""
    y = da.new_empty(da.shape[:3])
    _call("selective", "selective_scan", (da, dbx, c, y), tuple(da.shape[:3]))
    return y
