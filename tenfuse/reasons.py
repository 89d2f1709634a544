"""Why a loop is kept: stable codes, a cause in one sentence, one remedy.

Takes nothing; every stage that cannot go on raises ``Refused`` with a ``Refusal`` built
here, and names the user's line by ``where``.  Codes never change meaning: TF1xx capture,
TF2xx step, TF3xx algebra and plan, TF4xx emit and runtime, TF9xx a fault inside tenfuse
itself.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.fx as fx

Frame = tuple[str, int, str]
_FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in (.+)$', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Code:
    code: str
    cause: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A loop that stays as it is: ``code``, one sentence, one remedy, the user's line."""

    code: str
    reason: str
    hint: str
    where: str = ""

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return f"{self.code}: {self.reason}{place} ({self.hint})"


class Refused(Exception):
    """Raised by a stage that cannot go on; carries the ``Refusal`` the report shows."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


_TABLE: dict[str, Code] = {}


def _code(code: str, cause: str, remedy: str) -> Code:
    if code in _TABLE:
        raise ValueError(f"refusal code {code} is defined twice")
    _TABLE[code] = Code(code, cause, remedy)
    return _TABLE[code]


def refuse(code: Code, detail: str = "", where: str = "") -> Refused:
    """The exception to raise for ``code``; ``detail`` replaces the general cause."""
    return Refused(Refusal(code.code, detail or code.cause, code.remedy, where))


@functools.lru_cache(maxsize=65536)
def frames(trace: str) -> tuple[Frame, ...]:
    """The file, line and function of each frame of a stack trace, outermost first."""
    return tuple((file, int(line), name) for file, line, name in _FRAME.findall(trace))


@functools.cache
def torch_folder() -> str:
    """Where torch is installed; found without importing it."""
    found = importlib.util.find_spec("torch")
    return os.path.join(os.path.dirname(found.origin), "") if found and found.origin else os.devnull


def where(node: fx.Node) -> str:
    """``file:line`` of the innermost line behind a node that is not torch's own, or ""."""
    every = frames(node.meta.get("stack_trace") or "")
    own = [f for f in every if not f[0].startswith(torch_folder())] or every
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def codes() -> tuple[Code, ...]:
    """Every code, in numerical order."""
    return tuple(_TABLE[k] for k in sorted(_TABLE))


# capture
NOT_AFFINE = _code(
    "TF101",
    "an index does not move by a constant amount from step to step",
    "index the time axis with an affine function of the loop variable",
)
ODD_STEP = _code(
    "TF102",
    "a step in the middle of the loop differs from its neighbours",
    "move the odd step out of the loop, or select with torch.where",
)
ALIASED_WRITE = _code(
    "TF103",
    "a tensor is written in place through an alias that the loop also reads",
    "write into a fresh tensor, or build the result by appending and torch.stack",
)
OWN_PARAMETERS = _code(
    "TF104",
    "every step uses parameters of its own: this is depth, not time",
    "nothing to do: layers are compiled by the inner compiler",
)
GROWING = _code(
    "TF105",
    "a slice grows from step to step",
    "read a fixed-size window, or keep the running result in a carry",
)
UNPROVED = _code(
    "TF106",
    "unrolling the rolled loop again did not give the same graph",
    "please report this loop; it was left untouched",
)
BUFFER_READ = _code(
    "TF107",
    "a buffer is read at an index that is not a fixed number of steps from the one written",
    "read only what the previous step wrote, or keep it in a local variable",
)
FIXED_POINT = _code(
    "TF108",
    "the steps take no input and leave no output of their own: this is an iteration, not time",
    "nothing to do: it is left to the inner compiler",
)
TRANSFORMED = _code(
    "TF109",
    "the loop stands inside torch.func.grad, vmap or another transform of torch.func",
    "use torch.autograd.grad, or a batch dimension of the model's own",
)
GRAPH_BREAK = _code(
    "TF120",
    "the body breaks the graph, so Dynamo leaves the whole loop to Python",
    "replace the line that breaks it by tensor operations; TORCH_LOGS=graph_breaks shows more",
)
# step
RANDOM = _code(
    "TF201",
    "the body draws random numbers, whose order a fused loop would change",
    "draw the noise for all steps before the loop",
)
UNSUPPORTED_OP = _code(
    "TF202",
    "an operation on the state has no rule over named axes",
    "write it with arithmetic, reductions, matmul or einsum; or apply it after the loop, to all states",
)
CARRY_CHANGES = _code(
    "TF203",
    "the state changes its shape, dtype or device from step to step",
    "keep the state's shape, dtype and device fixed through the loop",
)
AXES = _code(
    "TF204",
    "the axes of two operands on the state's path cannot be aligned",
    "write the step with einsum or with explicit dimensions",
)
NOT_BATCHABLE = _code(
    "TF205",
    "a state-free part of the body cannot be batched over time",
    "compute it for all steps before the loop",
)
DTYPE = _code(
    "TF206",
    "the state has a dtype without a kernel",
    "use a floating, complex or boolean dtype, or integers other than uint16, uint32 and uint64",
)
SIDE_EFFECT = _code(
    "TF207", "the body has a side effect besides its tensors", "keep the loop body free of side effects"
)
# plan
TOO_LARGE = _code(
    "TF301",
    "the state of one task does not fit on chip",
    "split the state over more heads, or make it smaller",
)
DEVICE = _code(
    "TF302",
    "there is no target for this device",
    "move the whole model to the CPU or to one CUDA device, and leave target='auto'",
)
TOO_SHORT = _code(
    "TF303",
    "the loop has too few steps to be worth a kernel",
    "nothing to do: short loops are left to the inner compiler",
)
# emit and runtime
NO_COMPILER = _code("TF401", "no C++ compiler was found", "install g++ or clang++, or set CXX to one")
COMPILE_FAILED = _code(
    "TF402",
    "the C++ compiler rejected a generated kernel",
    "please report this loop; `tenfuse doctor` shows the compiler",
)
NO_TILES = _code(
    "TF403",
    "part of the step has no form on the tiles of a Triton kernel",
    "run this model on the CPU with target='cpp', or split the step",
)
QUARANTINED = _code(
    "TF404",
    "a generated kernel computed wrong numbers on this device, or did not compile for it",
    "another version of Triton may compile it; please report this loop",
)
NO_PLACE = _code(
    "TF405",
    "a kernel could not be written to disk, or not be loaded from there",
    "set TENFUSE_CACHE_DIR to a folder with room, where you may write files and load libraries",
)
# faults
INTERNAL = _code(
    "TF901",
    "tenfuse failed inside; the graph was left to the inner compiler",
    "please report this; options={'strict': True} shows the traceback",
)
