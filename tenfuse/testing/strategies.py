"""Random loop programs whose answer is known: Hypothesis strategies and what they draw.

``programs()`` draws recurrences in varied spellings, all of which have to be fused;
``mutants()`` draws their near misses, which only have to be right.  A ``Program`` is real
source in a real file, so that stack traces and reports point somewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tenfuse.report.report import LoopReport
from tenfuse.testing import recipe as choices
from tenfuse.testing.printer import HEADS, Printed, printed
from tenfuse.testing.recipe import Recipe, normal

LONG_ENOUGH = 7
"""With fewer steps there may be too few to see a loop, or too few to be worth a kernel."""


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    recipe: Recipe

    @functools.cached_property
    def printed(self) -> Printed:
        return printed(self.recipe)

    @property
    def source(self) -> str:
        return self.printed.source

    @property
    def grad(self) -> bool:
        """Whether eager itself can differentiate it."""
        return self.recipe.mutant != "overwrite_input"

    @property
    def loops(self) -> int:
        return 2 if self.recipe.chain else 1

    def __repr__(self) -> str:
        return f"{self.recipe}\n{self.source}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis shows the source of a failing program."""
        printer.text(repr(self))

    def load(self) -> Callable[..., Any]:
        """The function ``model`` of the program, imported from a file of its own."""
        digest = hashlib.sha256(self.source.encode()).hexdigest()[:16]
        path = Path(_folder().name, f"program_{digest}.py")
        path.write_text(self.source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model: Callable[..., Any] = module.model
        return model

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The same numbers for every recipe of one meaning, in the layout of this one."""
        p = self.printed
        streams = [self._stream(name, axes) for name, axes in p.streams.items()]
        constants = [self._data(name, axes) for name, axes in p.constants.items()]
        return (*streams, *constants, *(self._data(name, axes) for name, axes in p.carries.items()))

    def outputs(self, results: Sequence[Any]) -> tuple[Any, ...]:
        """Results in one common layout: stacked outputs with time first."""
        if self.recipe.collect == "final":
            return tuple(results)
        axes = 3 if self.recipe.cell in ("attention", "delta") else 2
        return (results[0].movedim(min(self.recipe.out_time, axes), 0), *results[1:])

    def expect_fused(self, loops: Sequence[LoopReport]) -> None:
        """Raise ``AssertionError`` unless every loop was fused, as the one it is."""
        if self.recipe.steps < LONG_ENOUGH or self.recipe.mutant:
            return
        kept = [f"{loop.span} {loop.code}: {loop.reason}" for loop in loops if loop.status == "kept"]
        assert not kept, f"kept: {kept}"
        assert len(loops) == self.loops, f"{len(loops)} loops were seen, the program has {self.loops}"
        for loop in loops:
            # started from a number, coupled states take their shapes one step after the other
            odd = self.printed.states if self.recipe.init == "number" else 1
            steps = self.recipe.steps
            assert steps - odd <= loop.steps <= steps, f"{loop.span} has {steps} steps, not {loop.steps}"
        form = loops[0].form
        assert form == self.recipe.form, f"found {form}, the recurrence is {self.recipe.form}"

    def _data(self, name: str, axes: str) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(f"{name} {axes}".encode()).digest()[:4], "little")
        sizes = [self._size(a) for a in axes]
        values = torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if name in ("R", "P"):
            values = 0.3 * values
        return values.to(getattr(torch, self.recipe.dtype))

    def _stream(self, name: str, axes: str) -> torch.Tensor:
        """Time first in the data, at its place in the tensor; ``strided``: not copied there."""
        moved = self._data(name, "t" + axes).movedim(0, min(self.recipe.time, len(axes)))
        return moved if self.recipe.strided else moved.contiguous()

    def _size(self, axis: str) -> int:
        r = self.recipe
        return {"t": r.steps, "b": r.batch, "w": r.width, "h": HEADS, "k": r.width, "v": r.width + 1}[axis]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """One folder per process, removed with it."""
    return tempfile.TemporaryDirectory(prefix="tenfuse-programs-")


@st.composite
def recipes(draw: Callable[..., Any], mutant: bool = False) -> Recipe:
    def one(options: Iterable[Any]) -> Any:
        return draw(st.sampled_from(tuple(options)))

    flag = st.booleans()
    return normal(
        Recipe(
            mutant=one(choices.MUTANTS) if mutant else "",
            cell=one(choices.CELLS),
            steps=one((8, 9, 7, 12, 16, 3, 2, 1)),
            batch=one((2, 1, 3)),
            width=one((3, 1, 4, 8)),
            dtype=one(choices.DTYPES),
            header=one(choices.HEADERS),
            access=one(choices.ACCESSES),
            init=one(choices.INITS),
            collect=one(choices.COLLECTS),
            read=one(choices.READS),
            contract=one(choices.CONTRACTIONS),
            time=one((1, 0, 2)),
            out_time=one((1, 0, 2)),
            helper=draw(flag),
            casts=draw(flag),
            project=draw(flag),
            chain=draw(flag),
            strided=draw(flag),
            order=draw(st.integers(0, 10**6)),
            variant=draw(st.integers(0, 5)),
        )
    )


def programs() -> st.SearchStrategy[Program]:
    """Recurrences that have to be fused, where they are long enough, and right."""
    return recipes().map(Program)


def mutants() -> st.SearchStrategy[Program]:
    """Near misses: fused or kept, but right."""
    return recipes(mutant=True).map(Program)
