"""Calling a Triton kernel on tensors.

Takes a ``TileKernel`` and, per call, tensors viewed as its operands say; leaves results in
the tensors with the roles final and out.  The source becomes a module in the cache folder,
named by its digest and published by one rename; Triton compiles it per device and keeps the
binary in its own cache.  With TRITON_INTERPRET=1 it runs on tensors of the CPU.

Refuses (DEVICE) where Triton is not installed, and (NO_TILES) what its compiler rejects.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tenfuse.emit.triton import emit
from tenfuse.plan.tiles.kernel import TileKernel
from tenfuse.plan.tiles.settings import Setting, bucket
from tenfuse.reasons import DEVICE, refuse
from tenfuse.runtime import interpreted, tune
from tenfuse.runtime.cache import root, write_atomically
from tenfuse.runtime.device import recording
from tenfuse.step.program import AxisName, compares

_lock = threading.Lock()
MOST = (1 << 31) - 1
"""Instances that one launch can have."""
FAR = 1 << 31
"""Bytes of memory beyond which an entry's offset may not fit 32 bits."""
RESULTS = ("final", "out")
"""Roles of what a kernel writes."""


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


class TileLauncher:
    """One kernel, loaded once, called many times and from any thread."""

    def __init__(self, kernel: TileKernel) -> None:
        self.kernel = kernel
        self.source = emit(kernel)
        self.function = load(self.source)
        tiling, program = kernel.tiling, kernel.program
        extent = dict(tiling.blocks)
        self._over = [(a, 1) for a in tiling.grid] + [(a, extent[a]) for a in tiling.split]
        self._sizes = dict(program.sizes)
        self._dynamic = kernel.axes()
        # Another kernel may compute the same values, to be compared with these.
        self._fuses = not compares(program)
        self.spilled: float | None = None
        """Bytes that a thread of the last binary puts away; infinite without one, None if unknown."""
        self._settings: dict[tuple[torch.device, tuple[int, int]], Setting] = {}

    def __call__(
        self, tensors: Sequence[torch.Tensor], steps: int, sizes: Mapping[AxisName, int] | None = None
    ) -> None:
        """Run ``steps`` steps; ``tensors`` stand in the order of ``kernel.operands``.

        Allocates nothing and waits for nothing, so that a CUDA graph may record it.
        """
        known = {**self._sizes, **(sizes or {})}
        instances = 1
        for axis, extent in self._over:
            instances *= -(-known[axis] // extent)
        count = -(-steps // self.kernel.length)
        instances *= count if self.kernel.parallel else 1
        if not instances:
            return
        if instances > MOST:
            raise ValueError(f"a fused loop has {instances} independent parts, more than a card can start")
        strides = [s for x in tensors for s in x.stride()]
        self._launch(tensors, instances, [*strides, *(known[a] for a in self._dynamic), steps, count])

    def _launch(self, tensors: Sequence[torch.Tensor], instances: int, numbers: Sequence[int]) -> None:
        far = any(x.untyped_storage().nbytes() >= FAR for x in tensors)
        function = self.far if far else self.function

        def launch(setting: Setting) -> None:
            warps, stages = setting
            try:
                made = function[(instances,)](
                    *tensors, *numbers, num_warps=warps, num_stages=stages, enable_fp_fusion=self._fuses
                )
            except Exception:
                self.spilled = math.inf
                raise
            self.spilled = 4.0 * made.n_spills if made is not None else None

        # The dispatcher sets no device, and Triton starts kernels on the current one.
        with torch.cuda.device_of(tensors[0]):
            launch(self._setting(tensors, bucket(instances, numbers[-1]), launch))

    @functools.cached_property
    def far(self) -> Any:
        """The kernel for tensors of ``FAR`` bytes or more, made when the first of them comes."""
        return load(emit(self.kernel, True))

    def _setting(
        self, tensors: Sequence[torch.Tensor], size: tuple[int, int], launch: Callable[[Setting], None]
    ) -> Setting:
        own = (self.kernel.tiling.warps, self.kernel.tiling.stages)
        if not tensors[0].is_cuda:
            return own
        which = (tensors[0].device, size)
        if which not in self._settings:
            if recording():
                return own
            results = [x for x, o in zip(tensors, self.kernel.operands, strict=True) if o.role in RESULTS]
            self._settings[which] = tune.setting(self.kernel, self.source, size, launch, results)
        return self._settings[which]


@functools.cache
def load(source: str) -> Any:
    """The kernel of a module's text."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise refuse(DEVICE, "Triton is not installed: pip install 'tenfuse[gpu]'") from error
    if interpreting():
        interpreted.mend()
    digest = hashlib.sha256(source.encode()).hexdigest()
    with _lock:
        path = _module(f"tiles_{digest[:32]}.py", source)
    spec = importlib.util.spec_from_file_location(f"tenfuse_tiles_{digest[:32]}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.kernel


def _module(name: str, text: str) -> Path:
    """The file with ``text``; a cache that cannot be written (read-only, full) is no error."""
    try:
        path = root() / name
        if not path.exists() or path.read_text() != text:
            write_atomically(path, text)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="tenfuse-")) / name
        path.write_text(text)
    return path


__all__ = ["TileLauncher", "interpreting", "load"]
