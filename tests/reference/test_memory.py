"""Memory of forward and backward on the CPU: what a call needs beyond what it is given.

Each loop runs in a process of its own, with T = 4096, where all states together are up to ten
times as large as inputs, outputs and gradients.  Counted are pages (the high-water mark that
Linux keeps), so that what kernels allocate for themselves is in it.  By itself, one loop:

    PYTHONPATH=. python tests/reference/test_memory.py delta tenfuse    or eager
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STEPS = 4096
LOOPS = {"delta": (1, 4, 64), "linear": (1, 4, 64), "gated": (4, 8, 64), "lstm": (8, 1, 64)}
MOST = 2
"""Times inputs, outputs and the states of every 64th step.  Outputs and gradients alone are one."""
FRESH = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""Freed memory goes back to the system at once: what was freed before a call is no part of it."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux keeps a high-water mark")
@pytest.mark.parametrize("name", LOOPS)
def test_memory_of_forward_and_backward(name):
    found = measured(name, "tenfuse")
    needed = found["inputs"] + found["outputs"] + found["states"] // 64
    assert found["inputs"] <= found["peak"] <= MOST * needed, found


def measured(name: str, way: str) -> dict[str, int]:
    """Bytes of inputs, outputs and all states of a loop, and the peak of a call beyond the inputs."""
    root = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, **FRESH, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, name, way]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, way: str) -> dict[str, int]:
    import torch

    from reference.steps import STEPS as STEP
    from reference.steps import Size, looped, scanned
    from tenfuse.runtime import reuse

    batch, heads, dim = LOOPS[name]
    step = STEP[name]
    torch.manual_seed(0)
    x = step.make(Size(batch, STEPS, heads, dim))
    given = [*x.carry, *x.streams, *x.constants]
    leaves = [t.requires_grad_() for t in given]

    def run(carry, streams, constants):
        return scanned(step, carry, streams, constants)

    if way == "tenfuse":
        run = torch.compile(run, backend="tenfuse", options={"strict": True}, dynamic=False)

    def call() -> tuple[list[Any], tuple[Any, ...]]:
        loop = run if way == "tenfuse" else lambda *args: looped(step, *args)
        carry, y = loop(x.carry, x.streams, x.constants)
        values = [*carry, y]
        return values, torch.autograd.grad(values, leaves, [torch.ones(()).expand_as(v) for v in values])

    if way == "tenfuse":
        call()  # compiles
    gc.collect()
    reuse._pool = reuse.Pool()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    values, grads = call()
    peak = resident("VmHWM") - before
    assert all(bool(v.isfinite().all()) for v in (*values, *grads))
    outputs = sum(v.nbytes for v in values)
    states = STEPS * sum(t.nbytes for t in x.carry)
    return {"inputs": sum(t.nbytes for t in given), "outputs": outputs, "states": states, "peak": peak}


def resident(which: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most since the mark was cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(which)))


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
