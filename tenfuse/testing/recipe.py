"""A recurrence and how it is spelt, as a handful of small choices.

A ``Recipe`` is what the generator draws: the cell says what is computed, every other
field how it is written down.  ``normal`` settles combinations that contradict each other.
Two recipes with the same ``meaning`` compute the same function of the same data, however
differently they print.  The first choice of every tuple is the plainest: shrinking goes
there.
"""

from __future__ import annotations

import dataclasses

CELLS = {
    "ema": "elementwise",
    "gated": "elementwise",
    "rotation": "block",
    "momentum": "block",
    "attention": "low-rank",
    "delta": "low-rank",
    "dense": "dense",
    "maxplus": "semiring",
    "rnn": "nonlinear",
    "state_gate": "nonlinear",
    "lstm": "nonlinear",
}
"""What a step computes, and the form an algebra should find."""

DTYPES = ("float32", "float64", "bfloat16")
HEADERS = ("range", "shape", "while", "chunked", "unrolled", "reversed", "down", "mirror")
BACKWARDS = ("reversed", "down", "mirror")
ACCESSES = (
    "index",
    "ellipsis",
    "select",
    "narrow",
    "slice",
    "unbind",
    "split",
    "chunk",
    "moved",
    "zip",
    "enumerate",
)
INITS = ("zeros", "given", "number", "none")
COLLECTS = ("stack", "cat", "buffer", "copy", "final")
READS = ("after", "before")
CONTRACTIONS = ("einsum", "matmul", "mulsum")
MUTANTS = (
    "tanh",
    "clamp",
    "gate_on_state",
    "stale",
    "lag2",
    "lag_guarded",
    "odd_step",
    "odd_input",
    "odd_last",
    "escape",
    "view_write",
    "slice_write",
    "append_then_inplace",
    "overwrite_input",
    "alias_out",
    "alias_view",
    "dropout",
    "noise",
    "break_data",
    "break_item",
    "break_python",
    "continue",
    "periodic",
    "dtype_change",
    "history",
    "permuted",
    "detach",
    "detach_chunk",
    "wrong_side",
    "leak",
    "depth",
)
"""Programs that only look like their recurrence, or are another one: must be right."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    cell: str = "ema"
    steps: int = 8
    batch: int = 2
    width: int = 3
    dtype: str = "float32"
    header: str = "range"
    access: str = "index"
    init: str = "zeros"
    collect: str = "stack"
    read: str = "after"
    contract: str = "einsum"
    time: int = 1
    out_time: int = 1
    helper: bool = False
    casts: bool = False
    project: bool = False
    chain: bool = False
    strided: bool = False
    order: int = 0
    """Bits that turn operands around and pick among equal expressions."""
    variant: int = 0
    """Bits that pick among different but similar functions."""
    mutant: str = ""

    @property
    def form(self) -> str:
        """What an algebra should find; a sum over an axis of one entry is none."""
        form = CELLS[self.cell]
        return "elementwise" if self.width == 1 and form in ("low-rank", "dense") else form

    @property
    def backwards(self) -> bool:
        return self.header in BACKWARDS

    @property
    def meaning(self) -> tuple[object, ...]:
        """What is computed, without how it is written."""
        return (
            self.cell,
            self.steps,
            self.batch,
            self.width,
            self.dtype,
            self.backwards,
            self.read,
            self.casts,
            self.variant,
            self.project,
            self.chain,
            self.init == "given",
            self.collect == "final",
            self.mutant,
        )


def normal(r: Recipe) -> Recipe:
    """``r`` with contradicting choices settled."""
    change = dataclasses.replace
    if r.mutant:
        r = _settled(r)
    if r.cell not in ("ema", "gated") and r.init == "none":
        r = change(r, init="zeros")
    if r.cell not in ("ema", "gated", "rotation", "momentum") and r.init == "number":
        r = change(r, init="zeros")
    if r.init in ("none", "number") and (r.read == "before" or r.helper):
        r = change(r, read="after", helper=False)
    if r.access in ("zip", "enumerate") and r.header not in ("range", "shape"):
        r = change(r, access="unbind")
    if r.header == "unrolled" and r.steps < 2:
        r = change(r, header="range")
    if r.collect == "final" and r.chain:
        r = change(r, chain=False)
    return r


def _settled(r: Recipe) -> Recipe:
    """The same for mutants, which need their step number, a plain loop or a linear cell."""
    change = dataclasses.replace
    r = change(r, chain=False, init="zeros" if r.init in ("none", "number") else r.init)
    r = change(r, steps=max(r.steps, 4))
    if r.header == "unrolled" or (r.header == "chunked" and r.mutant.startswith("break")):
        r = change(r, header="range")
    if r.mutant in ("lag2", "lag_guarded", "permuted", "overwrite_input", "depth"):
        r = change(r, access="index")
    if r.mutant in ("view_write", "slice_write", "append_then_inplace", "wrong_side", "history"):
        r = change(r, cell="dense" if r.mutant == "wrong_side" else "ema", read="after", helper=False)
    if r.mutant == "append_then_inplace" and r.collect not in ("stack",):
        r = change(r, collect="stack")
    if r.mutant == "history":
        r = change(r, collect="stack")
    if r.mutant == "wrong_side":
        r = change(r, batch=r.width)
    if r.mutant == "dtype_change":
        r = change(r, cell="ema", helper=False)
    return r
