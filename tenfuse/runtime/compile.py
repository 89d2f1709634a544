"""Source text to a loaded function.

Takes C++ text; leaves a ctypes function.  Uses the compiler that Inductor would use, and
asks it which vectors ``-march=native`` gives.  Refuses when there is no compiler or it
rejects the text.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import functools
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from tenfuse.emit.cpp.isa import AVX2, AVX512, NEON, SSE, Isa
from tenfuse.reasons import COMPILE_FAILED, NO_COMPILER, NO_PLACE, refuse
from tenfuse.runtime import cache

log = logging.getLogger("tenfuse")
_LARGE = 60_000
"""Characters of source from which on compile time counts for more than the last per cent."""
_TRIES = 4
"""Another process may remove a kernel, to make room in the cache, before it is loaded."""

FLAGS = (
    "-std=c++17",
    "-march=native",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-w",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-semantic-interposition",
)
"""Nothing here changes what NaN, infinities and signed zeros do."""


@dataclasses.dataclass(frozen=True)
class Compiler:
    path: str
    version: str
    macros: str
    """What ``-march=native`` predefines: it names the CPU as far as code can tell."""

    @property
    def isa(self) -> Isa:
        for macro, isa in (("__AVX512F__", AVX512), ("__AVX2__", AVX2), ("__ARM_NEON", NEON)):
            if f"#define {macro} " in self.macros:
                return dataclasses.replace(isa, cores=torch.get_num_threads())
        return dataclasses.replace(SSE, cores=torch.get_num_threads())


def compiler() -> Compiler:
    """The C++ compiler; refuses when there is none."""
    return _probe(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _probe(named: str, search: str) -> Compiler:
    for path in _candidates(named):
        try:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
            macros = subprocess.run(
                [path, "-march=native", "-dM", "-E", "-x", "c++", "-"],
                input="",
                capture_output=True,
                text=True,
                timeout=60,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if version.returncode == 0 and macros.returncode == 0:
            return Compiler(path, version.stdout.splitlines()[0] if version.stdout else "", macros.stdout)
    raise refuse(NO_COMPILER, f"CXX is {named!r}, which does not run as a C++ compiler" if named else "")


def _candidates(named: str) -> list[str]:
    """CXX, then Inductor's choice, then the usual names."""
    found = [shutil.which(named)] if named else []
    if not named:
        found.append(_inductor_choice())
        found += [shutil.which(name) for name in ("g++", "clang++", "c++")]
    return list(dict.fromkeys(p for p in found if p))


def _inductor_choice() -> str | None:
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return shutil.which(get_cpp_compiler())
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError):
        return None  # Inductor found none; the usual names are tried next


def build(source: str) -> Path:
    """The shared library for ``source``, from the cache or compiled now."""
    tool = compiler()
    key = cache.key_of(source, tool.path, tool.version, tool.macros, _level(source), " ".join(FLAGS))
    try:
        return cache.fetch(key, source, lambda text, library: _compile(tool, text, library))
    except OSError as error:  # read-only, full, or someone else's: it must not stop a kernel
        return _uncached(tool, source, error)


_homeless: list[tempfile.TemporaryDirectory[str]] = []
"""Kernels that the cache did not take; gone when the process ends."""


def _uncached(tool: Compiler, source: str, why: OSError) -> Path:
    if not _homeless:
        log.warning(
            "tenfuse: kernels cannot be kept (%s), so that every process compiles them anew; "
            "set TENFUSE_CACHE_DIR to a folder that can be written to",
            why,
        )
    try:
        _homeless.append(tempfile.TemporaryDirectory(prefix="tenfuse-", ignore_cleanup_errors=True))
        folder = Path(_homeless[-1].name)
        (folder / cache.SOURCE).write_text(source)
        _compile(tool, folder / cache.SOURCE, folder / cache.LIBRARY)
    except OSError as error:
        raise refuse(NO_PLACE, f"a kernel could not be written to disk: {error}") from error
    return folder / cache.LIBRARY


def _level(source: str) -> str:
    """-O3 takes four times as long on a large kernel, whose vectors are spelt out anyway."""
    return "-O3" if len(source) < _LARGE else "-O2"


def _compile(tool: Compiler, text: Path, library: Path) -> None:
    level = _level(text.read_text())
    command = [tool.path, level, *FLAGS, "-o", str(library), str(text)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except OSError as error:
        raise refuse(NO_COMPILER, f"the C++ compiler {tool.path} does not run: {error.strerror}") from error
    if done.returncode != 0 and os.strerror(errno.ENOSPC) in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(library.parent))
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if re.search(r"\berror\b", line)]
        what = (lines or done.stderr.splitlines() or ["no message"])[0]
        raise refuse(
            COMPILE_FAILED, f"the C++ compiler rejected a generated kernel: {what.split(': ', 1)[-1]}"
        )


_loaded: dict[str, Any] = {}
_guard = threading.Lock()


def load(source: str) -> Any:
    """The kernel function of ``source``, one per process."""
    with _guard:
        if source not in _loaded:
            function = _library(source).kernel
            function.restype = ctypes.c_int
            function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_int]
            _loaded[source] = function
        return _loaded[source]


def _library(source: str) -> ctypes.CDLL:
    for _ in range(_TRIES):
        path = build(source)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            if path.exists():
                raise refuse(NO_PLACE, f"a kernel could not be loaded: {error}") from error
    raise refuse(NO_PLACE, f"the kernel {path} went several times before it could be loaded")
