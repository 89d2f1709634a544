"""A card that is not there, as Triton sees one: what is launched on it is checked and written down.

Run in a process without TRITON_INTERPRET:

    python tests/runtime/fakecard.py STEP [STEP ...]
    python tests/runtime/fakecard.py --far         a stride that takes 64 bits
    python tests/runtime/fakecard.py --full        more shared memory than there is

Triton's own launch path runs: arguments are bound and specialised, kernels compiled for sm_90
under the very signature of the call and loaded within that card's limits.  Only the start is
missing.  Tensors are on the CPU, and nothing is computed.  Prints one line of JSON a launch.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

sys.path.insert(0, str(Path(__file__).parents[2]))

import tenfuse.surroundings
from reference.steps import STEPS, Size, scanned
from tenfuse.runtime import canary
from tenfuse.runtime.tiles import RESULTS, TileLauncher

SHARED, THREADS, GRID = 227 << 10, 1024, ((1 << 31) - 1, 65535, 65535)
"""What an H100 or H200 gives an instance, and how many there may be along each dimension."""
INTEGERS = {"i1": (0, 1), "i32": (-(1 << 31), (1 << 31) - 1), "i64": (-(1 << 63), (1 << 63) - 1)}
POINTERS = {"*fp32": torch.float32, "*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp64": torch.float64}


class Driver:
    """The methods of ``GPUDriver`` that launching takes."""

    def __init__(self, shared: int = SHARED) -> None:
        self.launched: list[dict] = []
        self.loaded = 0
        self.utils = SimpleNamespace(
            load_binary=self._load, get_device_properties=lambda device: {"max_shared_mem": shared}
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> object:
        return torch.cuda

    def _load(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        assert binary[:4] == b"\x7fELF"
        self.loaded += 1
        return 1, 1, 0, 0, THREADS

    def launcher_cls(self, source: object, metadata: object) -> object:
        def start(x: int, y: int, z: int, stream: int, function: int, packed: object, about: object,
                  enter: object, leave: object, *arguments: object) -> None:  # fmt: skip
            assert all(1 <= n <= most for n, most in zip((x, y, z), GRID, strict=True))
            kinds = list(source.signature.values())
            assert len(kinds) == len(arguments)
            for at, (kind, value) in enumerate(zip(kinds, arguments, strict=True)):
                _fits(kind, value, source.attrs.get((at,), []), source.constants.get((at,)))
            self.launched.append(
                {"grid": x, "shared": metadata.shared, "warps": metadata.num_warps, "kinds": kinds,
                 "arguments": [_shown(v) for v in arguments]}
            )  # fmt: skip

        return start


def _fits(kind: str, value: object, known: list, constant: object) -> None:
    """Whether the compiled kernel may be handed ``value``, given what it was compiled to take for known."""
    if kind == "constexpr":
        assert value == constant, (value, constant)
        return
    number = value.data_ptr() if isinstance(value, torch.Tensor) else value
    if isinstance(value, torch.Tensor):
        assert POINTERS[kind] is value.dtype
    else:
        low, high = INTEGERS[kind]
        assert low <= number <= high, (kind, number)
    assert not known or number % 16 == 0, (kind, number, known)


def _shown(value: object) -> object:
    return [value.data_ptr(), list(value.shape)] if isinstance(value, torch.Tensor) else value


def installed(shared: int = SHARED) -> Driver:
    driver = Driver(shared)
    triton.runtime.driver.set_active(driver)
    return driver


def ran(name: str, size: Size, dtype: torch.dtype, driver: Driver, far: bool = False) -> list[dict]:
    """The launches of a call and its backward, next to what the launcher was asked for."""
    step, asked, first = STEPS[name], [], len(driver.launched)
    given = step.make(size)
    groups = [tuple(t.to(dtype).requires_grad_() for t in g) for g in (given.carry, given.streams)]
    if far:
        groups[1] = tuple(_spread(t).requires_grad_() for t in groups[1])
    constants = tuple(t.to(dtype) for t in (*given.constants, *given.fixed))
    launch = TileLauncher._launch

    def written(self, tensors, instances, numbers):
        asked.append({"grid": instances, "arguments": [_shown(v) for v in (*tensors, *numbers)],
                      "writes": [o.role in RESULTS for o in self.kernel.operands]})  # fmt: skip
        launch(self, tensors, instances, numbers)

    torch._dynamo.reset()
    run = torch.compile(
        lambda *g: scanned(step, *g, constants), backend="tenfuse", dynamic=False,
        options={"strict": True, "inner": "eager", "target": "triton"},
    )  # fmt: skip
    with (
        mock.patch.object(tenfuse.surroundings, "interpreting", lambda: True),
        mock.patch.object(canary, "interpreting", lambda: True),  # nothing is computed to be tried
        mock.patch.object(TileLauncher, "_launch", written),
    ):
        carry, y = run(*groups)
        torch.autograd.grad([*carry, y], [*groups[0], *groups[1]], [torch.ones_like(v) for v in (*carry, y)])
    made = driver.launched[first:]
    return [{**one, "asked": want} for one, want in zip(made, asked, strict=True)]


def _spread(x: torch.Tensor) -> torch.Tensor:
    """Like ``x``, two batches more than 2^31 entries apart; memory that nobody touches costs none."""
    return torch.empty_strided(x.shape, ((1 << 31) + 64, *x.stride()[1:]), dtype=x.dtype)


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("torch._higher_order_ops.partitioner").setLevel(logging.WARNING)
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    driver = installed(0 if "--full" in sys.argv else SHARED)
    if "--full" in sys.argv:
        full(driver)
    if "--far" in sys.argv:
        shown("gated", Size(2, 5, 2, 16), driver, far=True)
    for name in names:
        for size in (Size(2, 5, 1, 1), Size(2, 9, 2, 16)):
            shown(name, size, driver)


def shown(name: str, size: Size, driver: Driver, far: bool = False) -> None:
    for found in ran(name, size, torch.bfloat16, driver, far):
        print("LAUNCH" + json.dumps({"step": name, "size": str(size), **found}))


def full(driver: Driver) -> None:
    """A kernel that takes more than there is says so at its launch, and is not loaded."""
    from triton.runtime.errors import OutOfResources

    try:
        ran("gated delta", Size(2, 70, 2, 16), torch.bfloat16, driver)
    except OutOfResources as error:
        print("REFUSED" + str(error).splitlines()[0])


if __name__ == "__main__":
    main()
