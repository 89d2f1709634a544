"""``tenfuse doctor``: is everything here that compiling needs, and does it work?

Takes nothing; leaves one ``Check`` per thing looked at.  Each is tried, not looked up:
the compiler compiles a file that is then loaded, the cache directory is written to.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenfuse.runtime.prune import Item

_SOURCE = """
#include <cmath>
extern "C" float tenfuse_doctor(int n) {
  float sum = 0;
#pragma omp parallel for reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += std::sqrt(4.0f);
  return sum;
}
"""

NEEDED = ("numpy", "rich", "sympy")
"""Packages besides torch that are imported on the way from a loop to its report."""


@dataclasses.dataclass(frozen=True)
class Check:
    """``ok`` is None for what is only worth knowing."""

    name: str
    ok: bool | None
    detail: str


def examine() -> list[Check]:
    looks = (_python, _torch, _packages, _backend, _compiler, _cache, _cores, _gpu, _triton)
    return [_safely(look) for look in looks]


def _safely(look: Callable[[], Check]) -> Check:
    try:
        return look()
    except Exception as error:
        return Check(look.__name__.strip("_"), False, f"{type(error).__name__}: {error}")


def _python() -> Check:
    system = f"{platform.system()} {platform.machine()}"
    return Check("python", True, f"{platform.python_version()} on {system}")


def _torch() -> Check:
    import torch

    from tenfuse import __version__

    return Check("torch", True, f"{torch.__version__}, tenfuse {__version__}")


def _packages() -> Check:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return Check("packages", False, f"not installed: pip install {' '.join(missing)}")
    return Check("packages", True, ", ".join(f"{name} {_version(name)}" for name in NEEDED))


def _backend() -> Check:
    from torch._dynamo.backends.registry import list_backends

    found = "tenfuse" in list_backends(exclude_tags=())
    missing = "torch does not list it: install the package (pip install -e .), a path is not enough"
    return Check("backend", found, 'torch.compile(model, backend="tenfuse")' if found else missing)


def _compiler() -> Check:
    from tenfuse.reasons import Refused
    from tenfuse.runtime.compile import FLAGS, compiler

    try:
        tool = compiler()
    except Refused as refused:
        return Check("compiler", False, f"{refused.refusal.reason}: {refused.refusal.hint}")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "doctor.cpp"), Path(folder, "doctor.so")
        source.write_text(_SOURCE)
        start = time.perf_counter()
        command = [tool.path, *FLAGS, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            return Check("compiler", False, f"{tool.path} failed: {' '.join(done.stderr.split())[:200]}")
        seconds = time.perf_counter() - start
        call = ctypes.CDLL(str(library)).tenfuse_doctor
        call.restype = ctypes.c_float
        right = call(64) == 128.0
    detail = f"{tool.path} ({tool.version}), a file with OpenMP in {seconds:.1f} s"
    return Check("compiler", right, detail if right else f"{tool.path} builds code that computes nonsense")


def _cache() -> Check:
    from tenfuse.config import OptionError
    from tenfuse.runtime.cache import root
    from tenfuse.runtime.prune import bound, items

    try:
        folder, allowed = root(), bound()
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"tenfuse")
    except OptionError as error:
        return Check("cache", False, str(error))
    except OSError as error:
        return Check("cache", False, f"{error}: set TENFUSE_CACHE_DIR to a folder that can be written to")
    limit = f"of at most {in_mib(allowed)}" if allowed else "without a bound"
    return Check("cache", True, f"{folder}: {held(items(folder))} {limit}")


def held(some: Sequence[Item]) -> str:
    return f"{len(some)} entries, {in_mib(sum(item.size for item in some))}"


def in_mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _cores() -> Check:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("cores", None, f"{usable} usable, {torch.get_num_threads()} torch threads")


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", None, "none that torch can use")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("gpu", None, ", ".join(names))


def _triton() -> Check:
    if importlib.util.find_spec("triton") is None:
        return Check("triton", None, "not installed (only needed for GPUs)")
    return Check("triton", None, _version("triton"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # on the path, but not installed by an installer
        return "of an unknown version"
