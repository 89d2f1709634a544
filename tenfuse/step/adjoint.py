"""The adjoint of a step is a step: reverse-mode differentiation on few node kinds.

Takes a ``StepProgram`` and which streams and invariants want gradients; leaves an
``Adjoint``: a program whose carries are the cotangents of the forward carries, run over
the same steps in the opposite order.

Its inputs: "state" i is the forward carry i at the start of the step, streams and
invariants are the forward ones, and stream ``n + j`` is the cotangent of output j, with n
the number of forward streams.  Its outputs are the gradients of the streams and, for
every invariant, terms that sum to its gradient.

Source: reverse accumulation (Linnainmaa 1970; Griewank and Walther, "Evaluating
Derivatives", ch. 3), applied to a DAG of pointwise and contraction nodes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from functools import partial

from tenfuse.reasons import AXES, refuse
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.ordered_adjoint import vjp
from tenfuse.step.program import (
    ORDERED,
    AxisName,
    Builder,
    CarrySpec,
    Const,
    Contract,
    Input,
    OutSpec,
    Pointwise,
    Ref,
    Rename,
    StepProgram,
    arguments,
    prune,
    validate,
    with_arguments,
)
from tenfuse.step.tensors import rename


@dataclasses.dataclass(frozen=True)
class Summed:
    """A term summed over time in the kernel: output ``out``, still to be summed over
    every axis that the invariant lacks."""

    out: int


@dataclasses.dataclass(frozen=True)
class Product:
    """A term that is a product of two small factors: outputs ``left`` and ``right`` at
    every step, contracted over time and every axis that the invariant lacks by a matmul."""

    left: int
    right: int


@dataclasses.dataclass(frozen=True)
class Adjoint:
    program: StepProgram
    streams: dict[int, int]
    """Forward stream -> output holding its gradient (axes as in the forward input)."""
    invariants: dict[int, tuple[Summed | Product, ...]]
    axes: dict[int, tuple[AxisName, ...]]
    """Axes of every invariant that wants a gradient, as in the forward input."""

    @property
    def needs_states(self) -> bool:
        return bool(self.program.inputs("state"))


class _Sweep:
    """Cotangents of every forward node, from the last to the first."""

    def __init__(self, program: StepProgram, wanted: Collection[tuple[str, int]], given: int) -> None:
        self.given = given
        self.program, self.build = program, Builder()
        self.axes = program.axes_of()
        self.ordered = any(isinstance(n, ORDERED) for n in program.nodes)
        self.first = {
            (kind, i): axes
            for kind in ("carry", "stream", "invariant")
            for i, axes in program.inputs(kind).items()
        }
        self.first |= {("carry", i): c.axes for i, c in enumerate(program.carries)}
        self.forward: list[Ref] = []
        for i in range(len(program.nodes)):
            self.forward.append(self._copied(i))
        self.active = self._active(set(wanted))
        self.cotangents: dict[Ref, Ref] = {}
        self.inputs: dict[tuple[str, int], list[Ref]] = {}

    def _copied(self, i: Ref) -> Ref:
        node = self.program.nodes[i]
        if isinstance(node, Input):
            kind = "state" if node.kind == "carry" else node.kind
            return self.build.input(kind, node.index, node.axes)
        if isinstance(node, Pointwise):
            return self.build.call(node.fn, *(self.forward[a] for a in node.args))
        if isinstance(node, Contract):
            return self.build.contract(self.forward[node.arg], *node.axes, op=node.op)
        return self.build.add(with_arguments(node, [self.forward[a] for a in arguments(node)]))

    def _active(self, wanted: set[tuple[str, int]]) -> set[Ref]:
        found: set[Ref] = set()
        for i, node in enumerate(self.program.nodes):
            if isinstance(node, Input):
                if node.kind == "carry" or (node.kind, node.index) in wanted:
                    found.add(i)
            elif any(a in found for a in arguments(node)):
                found.add(i)
        return found

    def seed(self) -> None:
        for i, carry in enumerate(self.program.carries):
            self._add(carry.next, self.build.input("carry", i, carry.next_axes))
        for j, out in enumerate(self.program.outs):
            self._add(out.ref, self.build.input("stream", self.given + j, out.axes))

    def _add(self, node: Ref, cotangent: Ref) -> None:
        if node not in self.active:
            return
        extra = self.build.axes[cotangent] - self.axes[node]
        cotangent = self.build.contract(cotangent, *extra)
        known = self.cotangents.get(node)
        self.cotangents[node] = cotangent if known is None else self.build.call("add", known, cotangent)

    def run(self) -> None:
        self.seed()
        for i in range(len(self.program.nodes) - 1, -1, -1):
            if i not in self.cotangents:
                continue
            node, g = self.program.nodes[i], self.cotangents[i]
            if isinstance(node, Pointwise):
                self._pointwise(i, node, g)
            elif isinstance(node, Contract):
                self._contract(i, node, g)
            elif isinstance(node, Input):
                self._input(node, g)
            elif isinstance(node, ORDERED):
                args = tuple(self.forward[a] for a in arguments(node))
                parts = vjp(self.build, node, args, self.forward[i], g)
                for arg, part in zip(arguments(node), parts, strict=True):
                    if part is not None and arg in self.active:
                        self._give(arg, part, frozenset() if isinstance(node, Rename) else self.axes[i])

    def _pointwise(self, i: Ref, node: Pointwise, g: Ref) -> None:
        args = tuple(self.forward[a] for a in node.args)
        for position, arg in enumerate(node.args):
            if arg not in self.active:
                continue
            part = FUNCTIONS[node.fn].vjp(self.build, g, args, self.forward[i], position)
            if part is None:
                continue
            self._give(arg, part, self.axes[i])

    def _give(self, arg: Ref, part: Ref, axes: frozenset[AxisName]) -> None:
        """``part`` to the argument of a node that spread it over ``axes``."""
        source = self.program.nodes[arg]
        missing = axes - self.axes[arg] - self.build.axes[part]
        part = self._times(part, missing)
        if isinstance(source, Input) and source.kind == "invariant":
            self._input(source, part)
        else:
            self._add(arg, part)

    def _times(self, part: Ref, axes: Collection[AxisName]) -> Ref:
        """The sum over axes along which ``part`` is constant."""
        if not axes:
            return part
        if set(axes) & self.program.dynamic:
            raise refuse(AXES, "a gradient is constant along a dimension of dynamic size")
        return self.build.call("mul", part, self.build.const(math.prod(self.program.sizes[a] for a in axes)))

    def _contract(self, i: Ref, node: Contract, g: Ref) -> None:
        if node.op == "sum":
            self._add(node.arg, g)
            return
        chosen = self.build.call("eq", self.forward[node.arg], self.forward[i])
        count = self.build.contract(chosen, *node.axes)
        share = self.build.call("div", g, count)
        self._add(node.arg, self.build.call("where", chosen, share, self.build.const(0.0)))

    def _input(self, node: Input, g: Ref) -> None:
        """Collect under the first naming of the input."""
        names = dict(zip(node.axes, self.first[node.kind, node.index], strict=True))
        clash = {b: f"{b}'" for b in names.values() if b not in names and b in self.build.axes[g]}
        # Over a chunk an expression holds whole matrices: its value takes the names, not a copy of it.
        moved = self.build.rename if self.ordered else partial(rename, self.build)
        self.inputs.setdefault((node.kind, node.index), []).append(moved(g, {**names, **clash}))


def _total(build: Builder, terms: list[Ref]) -> Ref:
    total = terms[0] if terms else build.const(0.0)
    for term in terms[1:]:
        total = build.call("add", total, term)
    return total


def adjoint(
    program: StepProgram, streams: Collection[int], invariants: Collection[int], given: int | None = None
) -> Adjoint:
    """The adjoint step of ``program``.

    Args:
        program: the forward step; no output may accumulate.
        streams: indices of the streams that want a gradient.
        invariants: indices of the invariants that want a gradient.
        given: how many streams the loop has, where the program may read fewer of them.
    """
    if given is None:
        given = 1 + max(program.inputs("stream"), default=-1)
    wanted = {("stream", i) for i in streams} | {("invariant", i) for i in invariants}
    sweep = _Sweep(program, wanted, given)
    sweep.run()
    build = sweep.build
    carries = tuple(
        CarrySpec(c.next_axes, _total(build, sweep.inputs.get(("carry", i), [])), c.axes)
        for i, c in enumerate(program.carries)
    )
    outs: list[OutSpec] = []
    found: dict[int, int] = {}
    for i in sorted(streams):
        if ("stream", i) in sweep.first:
            found[i] = len(outs)
            outs.append(OutSpec(_total(build, sweep.inputs.get(("stream", i), [])), sweep.first["stream", i]))
    draft = _program(program, build, carries, outs)
    parallel = draft.parallel_axes() if outs or carries else frozenset(program.sizes)
    terms = {
        i: tuple(_term(program, build, outs, part, sweep.first["invariant", i], parallel) for part in parts)
        for i in sorted(invariants)
        if (parts := sweep.inputs.get(("invariant", i), []))
    }
    whole = prune(_program(program, build, carries, outs))
    validate(whole)
    axes = {i: sweep.first["invariant", i] for i in sorted(invariants) if ("invariant", i) in sweep.first}
    return Adjoint(whole, found, terms, axes)


def _term(
    program: StepProgram,
    build: Builder,
    outs: list[OutSpec],
    part: Ref,
    own: tuple[AxisName, ...],
    parallel: frozenset[AxisName],
) -> Summed | Product:
    """One contribution to an invariant's gradient, as outputs of the adjoint."""
    size = _size(program, build, part)
    node = build.nodes[part]
    if isinstance(node, Pointwise) and node.fn == "mul":
        left, right = node.args
        both = _size(program, build, left) + _size(program, build, right)
        if both * 4 <= size and not any(isinstance(build.nodes[r], Const) for r in node.args):
            return Product(*(_output(build, outs, r) for r in (left, right)))
    extra = build.axes[part] - set(own)
    part = build.contract(part, *(extra - parallel))
    kept = sorted(build.axes[part] - set(own))
    outs.append(OutSpec(part, (*kept, *own), accumulate=True))
    return Summed(len(outs) - 1)


def _size(program: StepProgram, build: Builder, ref: Ref) -> int:
    return math.prod(program.sizes[a.rstrip("'")] for a in build.axes[ref])


def _output(build: Builder, outs: list[OutSpec], ref: Ref) -> int:
    for i, out in enumerate(outs):
        if out.ref == ref and not out.accumulate:
            return i
    outs.append(OutSpec(ref, tuple(sorted(build.axes[ref]))))
    return len(outs) - 1


def _program(
    program: StepProgram, build: Builder, carries: tuple[CarrySpec, ...], outs: list[OutSpec]
) -> StepProgram:
    names = {a for axes in build.axes for a in axes} | {
        a for n in build.nodes if isinstance(n, Contract) for a in n.axes
    }
    sizes = {a: program.sizes[a.rstrip("'")] for a in sorted(names | set(program.sizes))}
    dynamic = frozenset(a for a in sizes if a.rstrip("'") in program.dynamic)
    return StepProgram(tuple(build.nodes), sizes, carries, tuple(outs), dynamic)
