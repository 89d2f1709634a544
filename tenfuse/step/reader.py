"""Read the kernel's part of a step as a ``StepProgram``.

Takes an ``Aten`` step and its ``Fission``; leaves a ``Step``: the program, and for every
carry, stream, invariant and output of the program where it lies in the tensors of the
graph.  Reading restarts whenever an axis turns out to be finer than thought; the last
pass runs with all axes known.  Refuses operators that have no rule and that torch's own
decompositions do not make smaller.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
import torch.fx as fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from tenfuse.reasons import AXES, DTYPE, UNSUPPORTED_OP, Refused, refuse, where
from tenfuse.step.axes import Restart, hint
from tenfuse.step.fission import Fission
from tenfuse.step.normalize import Aten, fake_mode
from tenfuse.step.program import (
    AxisName,
    CarrySpec,
    Contract,
    Input,
    Node,
    OutSpec,
    StepProgram,
    node_axes,
    prune,
    validate,
)
from tenfuse.step.rules import RULES, cast
from tenfuse.step.rules import whole as whole_rules
from tenfuse.step.rules.whole import INTEGERS
from tenfuse.step.tensors import Key, Refs, Space, Value

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class View:
    """A strided view of a tensor whose dimensions are ``axes``.

    Axis ``i`` runs along dimension ``dims[i][0]`` in strides of ``dims[i][1]`` entries of
    it; ``offset`` gives the first entry along a dimension.  ``part`` picks the real (0) or
    imaginary (1) part of a complex tensor.
    """

    axes: tuple[AxisName, ...]
    dims: tuple[tuple[int, int], ...]
    offset: tuple[tuple[int, int], ...] = ()
    part: int | None = None


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where one carry, stream, invariant or output of the program lies.

    ``source`` is the index of a carry of the loop, or the graph node whose value it is.
    """

    source: Any
    view: View


@dataclasses.dataclass(frozen=True)
class Step:
    program: StepProgram
    carries: tuple[Placed, ...]
    streams: tuple[Placed, ...]
    invariants: tuple[Placed, ...]
    outs: tuple[Placed, ...]


def read(step: Aten, parts: Fission) -> Step:
    """The kernel's part of ``step`` over named axes."""
    space = Space()
    for _ in range(500):
        space.begin()
        try:
            _Reader(space, step, parts).run()
        except Restart:
            continue
        space.begin(final=True)
        return _finish(_Reader(space, step, parts).run())
    last = next((n for n in step.graph.nodes if n.name == space.site.partition("/")[0]), None)
    raise refuse(AXES, "the axes of the step do not settle", "" if last is None else where(last))


class _Reader:
    """One pass over the nodes."""

    def __init__(self, space: Space, step: Aten, parts: Fission) -> None:
        self.space, self.step, self.parts = space, step, parts
        self.values: dict[fx.Node, Any] = {}
        self.places: dict[str, list[Placed]] = {"carry": [], "stream": [], "invariant": []}
        self.inside = set(parts.inside)
        self.asked = ""
        """The operator of the step that is read, of which others may be parts."""

    def run(self) -> Step:
        for i, node in zip(self.step.live, self.step.carries, strict=True):
            self.values[node] = self._enter("carry", node, f"c{i}", i)
        for i, node in enumerate(self.parts.inputs):
            kind = "invariant" if node in self.parts.static else "stream"
            self.values[node] = self._enter(kind, node, f"x{i}", node)
        for node in self.parts.inside:
            self._compute(node)
        carries = self._carries()
        outs: list[OutSpec] = []
        places: list[Placed] = []
        for node in self.parts.exports:
            self._export(node, outs, places)
        space = self.space
        names = {a for axes in space.build.axes for a in axes} | {a for o in outs for a in o.axes}
        names |= {a for c in carries for a in (*c.axes, *c.next_axes)}
        names |= {a for n in space.build.nodes if isinstance(n, Contract) for a in n.axes}
        sizes = {a: space.axes.sizes[a.rstrip("'")] for a in sorted(names)}
        program = StepProgram(
            tuple(space.build.nodes),
            {a: hint(s) for a, s in sizes.items()},
            tuple(carries),
            tuple(outs),
            frozenset(a for a, s in sizes.items() if not isinstance(s, int)),
        )
        carried, streams, invariants = (tuple(self.places[k]) for k in ("carry", "stream", "invariant"))
        return Step(program, carried, streams, invariants, tuple(places))

    def _enter(self, kind: str, node: fx.Node, name: str, source: Any) -> Value:
        """A tensor that enters the kernel, one input per piece and part."""
        tensor = node.meta["val"]
        dims = self.space.new_dims(tuple(tensor.shape), name)
        whole = self._whole(kind, node)
        if whole and tensor.dtype not in INTEGERS:
            raise refuse(DTYPE, f"a carry is {tensor.dtype}", where(self.step.nexts[source]))

        def make(key: Key) -> Refs:
            refs = []
            for part in (0, 1) if tensor.is_complex() else (None,):
                view = self._view(dims, key, part)
                refs.append(self.space.build.input(kind, len(self.places[kind]), view.axes))
                self.places[kind].append(Placed(source, view))
            return tuple(self.space.build.call("whole", r) for r in refs) if whole else tuple(refs)

        return self.space.value(dims, make)

    def _whole(self, kind: str, node: fx.Node) -> bool:
        """Whether a tensor enters as integers: one that meets integers of the step's own.

        Others enter as the floats that they are added to or multiply.
        """
        if not _integers(node):
            return False
        mine = (*self.parts.inside, *self.step.carries)
        return (
            kind == "carry"
            or node in self.step.nexts
            or any(
                _integers(u) or any(a is not node and a in mine and _integers(a) for a in u.all_input_nodes)
                for u in node.users
                if u in self.inside
            )
        )

    def _view(self, dims: Any, key: Key, part: int | None) -> View:
        """Where one piece of a tensor lies in it."""
        axes, chosen = self.space.axes, dict(key)
        names: list[AxisName] = []
        steps: list[tuple[int, int]] = []
        offset: dict[int, int] = {}

        def visit(dim: Any, position: int, unit: int) -> int:
            """Place the axes of ``dim`` in reverse order; returns the stride after the outermost."""
            for axis in reversed(axes.leaves(dim)):
                if axes.is_cut(axis):
                    piece, points = chosen[axis], axes.cut_points(axis)
                    visit((axes.parts(axis)[piece],), position, unit)
                    offset[position] = offset.get(position, 0) + points[piece] * unit
                else:
                    names.append(axis)
                    steps.append((position, unit))
                unit *= hint(axes.sizes[axis])
            return unit

        for position, dim in enumerate(dims):
            leaves = axes.leaves(dim)
            if any(not isinstance(axes.sizes[a], int) for a in leaves[1:]):
                raise refuse(AXES, "a dynamic size stands inside a product of dimensions")
            start = len(names)
            visit(dim, position, 1)
            names[start:], steps[start:] = names[start:][::-1], steps[start:][::-1]
        return View(tuple(names), tuple(steps), tuple(sorted(offset.items())), part)

    def _compute(self, node: fx.Node) -> None:
        self.space.site, self.asked = node.name, spelled(node.target)
        try:
            self.values[node] = self._call(node.target, node.args, node.kwargs, node.meta.get("val"), node)
        except Refused as refused:
            if refused.refusal.where or not where(node):
                raise
            raise Refused(dataclasses.replace(refused.refusal, where=where(node))) from refused

    def _argument(self, x: Any) -> Any:
        if isinstance(x, fx.Node):
            return self.values[x] if x in self.values else x.meta["val"]
        if isinstance(x, (list, tuple)):
            return type(x)(self._argument(v) for v in x)
        return x

    def _call(self, target: Any, args: Any, kwargs: Any, val: Any, node: fx.Node) -> Any:
        if target is aten.sym_size.int:
            return val  # the same at every step, whatever tensor it is read off
        values = self._argument(args)
        if target is operator.getitem:
            return values[0][values[1]]
        if target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default):
            return self.space.reshape(values[0], tuple(val.shape))
        dtype = val.dtype if isinstance(val, torch.Tensor) else None
        whole = whole_rules.holds(self.space, values) or (dtype is not None and whole_rules.integral(dtype))
        if target is aten._to_copy.default:
            return (whole_rules.cast if whole else cast)(
                self.space, values[0], args[0].meta["val"].dtype, val.dtype
            )
        if whole:
            given = {k: self._argument(v) for k, v in kwargs.items()}
            made = whole_rules.applied(self.space, target, values, _dtypes(args), given, dtype)
            return self._decomposed(node) if made is None else made
        rule = RULES.get(target)
        if rule is None:
            return self._decomposed(node)
        return rule(self.space, target, *values, **{k: self._argument(v) for k, v in kwargs.items()})

    def _decomposed(self, node: fx.Node) -> Any:
        """The value of a node through torch's decomposition of its operator."""
        operator_: Any = node.target
        if any(a.target is aten.sym_size.int and a in self.inside for a in node.all_input_nodes):
            raise refuse(UNSUPPORTED_OP, f"{self.asked} by a dynamic size of the state")
        table = {**core_aten_decompositions(), **get_decompositions([operator_])}
        if node.target not in table:
            raise refuse(UNSUPPORTED_OP, f"{self.asked} of the state has no rule over named axes")
        tensors = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]

        def run(*given: torch.Tensor) -> Any:
            at = dict(zip(tensors, given, strict=True))
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: at.get(n, n.meta["val"]))
            return operator_(*args, **kwargs)

        values = [t.meta["val"] for t in tensors]
        try:
            with torch.no_grad(), fake_mode(values):
                small = make_fx(run, decomposition_table=table, _allow_non_fake_inputs=True)(*values)
        except RuntimeError as error:  # a dynamic size that is a number of the decomposition
            raise refuse(UNSUPPORTED_OP, f"{self.asked} of the state cannot be taken apart") from error
        if any(n.target is node.target for n in small.graph.nodes):
            raise refuse(UNSUPPORTED_OP, f"{self.asked} of the state has no rule over named axes")
        holders = [n for n in small.graph.nodes if n.op == "placeholder"]
        for holder, tensor in zip(holders, tensors, strict=True):
            self.values[holder] = self._argument(tensor)
        for inner in small.graph.nodes:
            if inner.op == "call_function":
                self.space.site = f"{node.name}/{inner.name}"
                self.values[inner] = self._call(
                    inner.target, inner.args, inner.kwargs, inner.meta.get("val"), inner
                )
            elif inner.op == "output":
                return self._argument(inner.args[0])
        raise refuse(UNSUPPORTED_OP, f"{self.asked} of the state has no rule over named axes")

    def _carries(self) -> list[CarrySpec]:
        """Every piece of every carry with its next value."""
        specs: list[CarrySpec] = []
        for i, node in zip(self.step.live, self.step.carries, strict=True):
            before, after = self.values[node], self._argument(self.step.nexts[i])
            for a, b in zip(before.dims, after.dims, strict=True):
                self.space.axes.mirror(a, b)
            keys = zip(self.space.keys(before.dims), self.space.keys(after.dims), strict=True)
            for key, next_key in keys:
                refs = self._widened(self.space.at(after, next_key), len(self.space.at(before, key)))
                for ref in refs:
                    axes = self.space.real_axes(before.dims, key)
                    specs.append(CarrySpec(axes, ref, self.space.real_axes(after.dims, next_key)))
        return specs

    def _widened(self, refs: Refs, parts: int) -> Refs:
        return (*refs, self.space.build.const(0.0))[:parts] if len(refs) < parts else refs

    def _export(self, node: fx.Node, outs: list[OutSpec], places: list[Placed]) -> None:
        value = self.values[node]
        is_complex = node.meta["val"].is_complex()
        for key in self.space.keys(value.dims):
            refs = self._widened(self.space.at(value, key), 2 if is_complex else 1)
            for part, ref in enumerate(refs):
                view = self._view(value.dims, key, part if is_complex else None)
                outs.append(OutSpec(ref, view.axes))
                places.append(Placed(node, view))


def spelled(target: Any) -> str:
    """An operator as its users know it: ``linalg_inv`` for ``aten.linalg_inv_ex.default``."""
    name = str(getattr(target, "overloadpacket", target)).rpartition(".")[2]
    return name.strip("_").removesuffix("_ex").removesuffix("_with_indices")


def _integers(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and whole_rules.integral(value.dtype)


def _dtypes(args: Any) -> Any:
    """The dtype of every argument that is a tensor."""
    if isinstance(args, (list, tuple)):
        return [_dtypes(a) for a in args]
    value = args.meta.get("val") if isinstance(args, fx.Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def _finish(step: Step) -> Step:
    """Merge axes that are the same but for their names, drop what nothing reads, renumber."""
    names = _merged(step.program)
    program = _with_names(step.program, names)
    program = prune(program)
    kept: dict[str, dict[int, int]] = {}
    for kind in ("stream", "invariant"):
        used = sorted({n.index for n in program.nodes if isinstance(n, Input) and n.kind == kind})
        kept[kind] = {old: new for new, old in enumerate(used)}

    def renumbered(node: Node) -> Node:
        if isinstance(node, Input) and node.kind in kept:
            return dataclasses.replace(node, index=kept[node.kind][node.index])
        return node

    program = dataclasses.replace(program, nodes=tuple(renumbered(n) for n in program.nodes))
    used_axes = {a for n in program.axes_of() for a in n}
    used_axes |= {a for c in program.carries for a in (*c.axes, *c.next_axes)} | {
        a for o in program.outs for a in o.axes
    }
    used_axes |= {a for n in program.nodes if isinstance(n, Contract) for a in n.axes}
    program = dataclasses.replace(
        program,
        sizes={a: s for a, s in program.sizes.items() if a in used_axes},
        dynamic=program.dynamic & used_axes,
    )
    validate(program)

    def placed(all_: tuple[Placed, ...], kind: str) -> tuple[Placed, ...]:
        """Under the names the program reads the input by, which renaming may have changed."""
        read_as = program.inputs(kind)
        mine = [all_[old] for old in kept[kind]]
        return tuple(_under(p, read_as[i]) for i, p in enumerate(mine))

    return Step(
        program,
        tuple(_under(p, c.axes) for p, c in zip(step.carries, program.carries, strict=True)),
        placed(step.streams, "stream"),
        placed(step.invariants, "invariant"),
        tuple(_under(p, o.axes) for p, o in zip(step.outs, program.outs, strict=True)),
    )


def _under(place: Placed, axes: tuple[AxisName, ...]) -> Placed:
    return dataclasses.replace(place, view=dataclasses.replace(place.view, axes=axes))


def _merged(program: StepProgram) -> dict[AxisName, AxisName]:
    """New names: a carry's axis and that of its next value are one unless some node has both."""
    names: dict[AxisName, AxisName] = {}
    changed = True
    while changed:
        changed = False
        current = _with_names(program, names)
        groups = [*current.axes_of(), *(frozenset(c.next_axes) for c in current.carries)]
        groups += [frozenset(c.axes) for c in current.carries] + [frozenset(o.axes) for o in current.outs]
        pairs = {
            (a, b)
            for c in current.carries
            for a, b in zip(c.axes, c.next_axes, strict=True)
            if a != b and not any({a, b} <= g for g in groups)
        }
        for a, b in sorted(pairs)[:1]:
            names = {old: a if new == b else new for old, new in names.items()} | {b: a}
            changed = True
    return names


def _with_names(program: StepProgram, names: dict[AxisName, AxisName]) -> StepProgram:
    if not names:
        return program

    def new(axes: Any) -> tuple[AxisName, ...]:
        return tuple(names.get(a, a) for a in axes)

    nodes: list[Node] = []
    for node in program.nodes:
        if isinstance(node, Input):
            node = dataclasses.replace(node, axes=new(node.axes))
        elif isinstance(node, Contract):
            node = dataclasses.replace(node, axes=frozenset(new(node.axes)))
        nodes.append(node)
    found: list[frozenset[AxisName]] = []
    for node in nodes:
        found.append(node_axes(node, found))
    return dataclasses.replace(
        program,
        nodes=tuple(nodes),
        carries=tuple(
            dataclasses.replace(c, axes=new(c.axes), next_axes=new(c.next_axes)) for c in program.carries
        ),
        outs=tuple(dataclasses.replace(o, axes=new(o.axes)) for o in program.outs),
        dynamic=frozenset(new(program.dynamic)),
    )
