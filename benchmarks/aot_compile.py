"""One kernel compiled ahead of time for a card that need not be there.

Takes a launch that was written down and the name of a target; leaves what the binary uses.
Arguments are specialised by Triton's own launcher code, so that the binary is the one a
launch with these tensors would make.  What a compiler refuses is returned as a text.

A result is kept in tenfuse's cache under a digest of all that it follows from: the text, what
its arguments are known to be, the options, the target and the compilers' versions.  What was
stopped or crashed is tried again: that may have been the machine.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.aot_launches import Launch
from tenfuse.runtime.cache import key_of, root
from tenfuse.step.program import compares

SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Targets, and the bytes of shared memory that an instance may use there."""
LIMIT, PATIENCE = 60, 600
"""Seconds of a processor after which a compiler is stopped, since nobody waits longer for a kernel;
and of the clock, on a machine that does other things too."""
_STOPPED, _CRASHED = f"not compiled after {LIMIT} s", "the compiler crashed"
_MATRIX = ("wgmma.mma_async", "tcgen05.mma", "mma.sync", "v_mfma")


@dataclasses.dataclass(frozen=True)
class Binary:
    """``spilled`` is bytes of local memory per thread; ``matrix`` counts instructions in the text."""

    target: str
    failed: str = ""
    seconds: float = 0.0
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    warps: int = 0
    matrix: Mapping[str, int] = dataclasses.field(default_factory=dict)


def compiled(launch: Launch, target: str, again: bool = False) -> Binary:
    """``launch``'s kernel for ``target``, in a process that ends after ``LIMIT`` seconds of work.

    Taken from the cache if it is there, but for ``again``.
    """
    path = root() / "aot" / f"{specialised(launch, target).key()}.json"
    found = None if again else _kept(path)
    if found is None:
        found = _apart(launch, target)
        if found.failed not in (_STOPPED, _CRASHED):
            _keep(path, found)
    return found


def _kept(path: Path) -> Binary | None:
    """None, too, for what a killed process left half written."""
    try:
        return Binary(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _keep(path: Path, binary: Binary) -> None:
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".tmp") as file:
        file.write(json.dumps(dataclasses.asdict(binary)))
    os.replace(file.name, path)


def _apart(launch: Launch, target: str) -> Binary:
    import triton.compiler  # noqa: F401 (once, not in every child)

    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_send, args=(theirs, launch, target))
    child.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            return Binary(target, failed=_STOPPED)
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        child.join()
        return Binary(target, failed=_STOPPED if child.exitcode == -signal.SIGXCPU else _CRASHED)
    finally:
        child.kill()
        child.join()
        ours.close()


def _send(to: Any, launch: Launch, target: str) -> None:
    # Processes that this one starts have the limit too.
    spent = int(_seconds())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + LIMIT, spent + LIMIT))
    to.send(_compiled(launch, target))


@dataclasses.dataclass(frozen=True)
class Specialised:
    """What Triton compiles, and for what."""

    source: Any
    options: Any
    gpu: Any
    backend: Any

    def key(self) -> str:
        import triton

        parts = (self.source.hash(), self.options.hash(), self.backend.hash(), triton.__version__)
        return key_of("2", self.source.fn.src, *parts)


def specialised(launch: Launch, target: str) -> Specialised:
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    tiling, function = launch.kernel.tiling, launch.function
    gpu = _gpu(target)
    backend = make_backend(gpu)
    binder = create_function_from_signature(function.signature, function.params, backend)
    fuses = not compares(launch.kernel.program)
    chosen = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": fuses}
    bound, specialization, options = binder(*launch.arguments, **chosen)
    parsed, signature, constants, attributes = function._pack_args(
        backend, options, bound, specialization, options
    )
    return Specialised(ASTSource(function, signature, constants, attributes), parsed, gpu, backend)


def _compiled(launch: Launch, target: str) -> Binary:
    import triton

    given = specialised(launch, target)
    start = _seconds()
    try:
        made = triton.compile(given.source, target=given.gpu, options=given.options.__dict__)
    except Exception as error:  # Triton's passes raise what they like; the table says what.
        return Binary(target, failed=f"{type(error).__name__}: {_last_line(error)}")
    seconds, amd = _seconds() - start, given.gpu.backend == "hip"
    registers, spilled = _amd(made.asm) if amd else _nvidia(made.asm)
    text = made.asm["amdgcn" if amd else "ptx"]
    matrix = {name: text.count(name) for name in _MATRIX if name in text}
    return Binary(
        target, "", seconds, registers, spilled, made.metadata.shared, made.metadata.num_warps, matrix
    )


def _seconds() -> float:
    """Of a processor, that this process and those it started have taken."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _gpu(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if target.startswith("sm_"):
        return GPUTarget("cuda", int(target[3:]), 32)
    return GPUTarget("hip", target, 64)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _nvidia(asm: Mapping[str, Any]) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, from the binary itself."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(asm["cubin"])
    try:
        run = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    finally:
        os.unlink(file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", run.stdout)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {run.stdout[:200]!r}")
    registers, stack, local = (int(x) for x in found.groups())
    return registers, max(stack, local)


def _amd(asm: Mapping[str, Any]) -> tuple[int, int]:
    text = asm["amdgcn"]
    return _number(text, ".vgpr_count"), _number(text, ".private_segment_fixed_size")


def _number(text: str, name: str) -> int:
    found = re.search(rf"{re.escape(name)}:\s*(\d+)", text)
    if found is None:
        raise ValueError(f"the binary does not say its {name}")
    return int(found.group(1))


__all__ = ["SHARED", "Binary", "compiled"]
