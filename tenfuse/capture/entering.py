"""What a step reads, and where each value comes from: the roles of a step's operands.

Takes a ``Segment`` of the SSA graph; leaves, for every position of the body, the carries, streams and
invariants it reads (``Inputs``), or raises ``Refused`` with the user's line, ``FirstDiffers`` or
``LastDiffers`` when only the first or the last run does not fit, and ``NeedsHoisting``.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.fx as fx

from tenfuse import reasons
from tenfuse.capture import families, views
from tenfuse.capture.body import Draft, Ref
from tenfuse.capture.loop import ViewOp
from tenfuse.capture.periods import Sequence
from tenfuse.capture.record import Record, put, written
from tenfuse.capture.segment import FILLS, SCALED, Operands, Segment, free_numbers, gathers
from tenfuse.capture.views import basic_index, call, geometry, is_tensor, value_of
from tenfuse.capture.writes import name_of
from tenfuse.reasons import refuse, where

_PICKS = {torch.where, torch.masked_fill, torch.lerp, "where", "masked_fill", "lerp"}
"""Functions of several tensors of one dtype, beside a mask, and a number."""


_BOUNDS = {torch.clamp, "clamp"}
"""Functions whose numbers are all tensors if one is."""


class FirstDiffers(Exception):
    """The first run enters with a state of another shape or type: peel it."""


class LastDiffers(Exception):
    """The last run reads at an index that wraps around: leave it outside."""


class NeedsHoisting(Exception):
    """A slice moves over a value that every step computes alike: compute it once, before."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class Inputs:
    """The values that enter the steps of one segment, found by visiting the operands of a step."""

    def __init__(
        self, seq: Sequence, ops: Operands, record: Record, segment: Segment, hoisted: frozenset[int]
    ) -> None:
        self.seq, self.record, self.segment = seq, record, segment
        self.runs, self.period, self.start = segment.runs, segment.period, segment.start
        self.table = ops.table(segment.start, segment.period, segment.runs)
        self.first_slot = [
            int(ops.offsets[self.start + j] - ops.offsets[self.start]) for j in range(self.period)
        ]
        self.hoisted = hoisted
        """Body positions whose value in the first run serves all runs, from before the loop."""
        before = {seq.nodes[segment.start + j] for j in hoisted}
        self.nodes = tuple(n for n in seq.nodes[segment.start : segment.stop] if n not in before)
        self.region = set(self.nodes)
        self.carries: list[tuple[int, fx.Node | None, Ref | None]] = []
        """(position of the value or -1, init, next value if it is another carry)"""
        self.carry_keys: dict[Any, int] = {}
        self.streams: list[Draft] = []
        self.stream_keys: dict[Any, int] = {}
        self.invariants: list[fx.Node] = []
        self.value: dict[int, Ref] = {}
        self.calls: dict[int, tuple[list[Any], list[Any]]] = {}
        self.fixed: dict[int, tuple[fx.Node, tuple[ViewOp, ...]]] = {}
        """Body positions that are constant views of one tensor from before the loop."""
        self.alike: set[int] = set()
        """Body positions that compute the same value in every run."""
        self.buffers: dict[int, int] = {}
        """Body positions that write a buffer -> the chain they belong to."""
        self.chains: list[tuple[fx.Node, list[int]]] = []
        self.clean = True

    # access ------------------------------------------------------------------------------

    def node(self, run: int, j: int) -> fx.Node:
        return self.seq.nodes[self.start + run * self.period + j]

    def refuse(self, code: reasons.Code, detail: str, j: int) -> reasons.Refused:
        return refuse(code, detail, where(self.node(0, j)))

    def slot(self, j: int, k: int) -> tuple[str, Any]:
        """Where operand ``k`` of body position ``j`` comes from."""
        column = self.table[:, self.first_slot[j] + k]
        inside = column >= self.start
        if inside.all():
            return "same", int(column[0]) - self.start
        operands = [self.seq.shapes[self.start + r * self.period + j].nodes[k] for r in range(self.runs)]
        if not inside.any():
            if all(o is operands[0] for o in operands):
                return "invariant", operands[0]
            return "varying", tuple(operands)
        distance = int(inside.argmax())
        position = int(column[distance]) - self.start
        return "carry", (position, tuple(operands[:distance]))

    # building ----------------------------------------------------------------------------

    def find(self) -> Inputs:
        self._find_buffers()
        for j in range(self.period):
            if j in self.hoisted:
                self.value[j] = self._invariant(self.node(0, j), j)
            elif j not in self.buffers:
                self._visit(j)
        return self

    def _find_buffers(self) -> None:
        """Chains of slice writes: each run hands the buffer on to the next.

        Where every run writes the same slices, the buffer is a state like any other.
        """
        for j in range(self.period):
            if self.node(0, j).target is not written or self.slot(j, 0)[0] != "carry":
                continue
            chain = [j]
            for k in range(j + 1, self.period):
                if self.node(0, k).target is written and self.slot(k, 0) == ("same", chain[-1]):
                    chain.append(k)
            if all(self._still(k) for k in chain):
                continue
            position, inits = self.slot(j, 0)[1]
            if position != chain[-1] or len(inits) != 1:
                raise self.refuse(reasons.BUFFER_READ, "two versions of a buffer are alive at once", j)
            self.buffers |= {k: len(self.chains) for k in chain}
            self.chains.append((inits[0], chain))
        for j in range(self.period):
            for k in range(len(self.seq.shapes[self.start + j].nodes)):
                kind, what = self.slot(j, k)
                source = what if kind == "same" else what[0] if kind == "carry" else -1
                if source in self.buffers and not (k == 0 and j in self.buffers):
                    raise self.refuse(reasons.BUFFER_READ, "", j)

    def _still(self, j: int) -> bool:
        places = [self.node(r, j).args[2] for r in range(self.runs)]
        return all(p == places[0] for p in places)

    def _visit(self, j: int) -> None:
        node, shape = self.node(0, j), self.seq.shapes[self.start + j]
        all_numbers = [self.seq.shapes[self.start + r * self.period + j].numbers for r in range(self.runs)]
        moving = [
            k
            for k in range(len(shape.numbers))
            if any(repr(n[k]) != repr(shape.numbers[k]) for n in all_numbers)
        ]
        if moving and (self._moving_view(j) or self._moving_roll(j)):
            return
        slots = [self.slot(j, k) for k in range(len(shape.nodes))]
        operands: list[Any] = [self.operand(j, s) for s in slots]
        numbers: list[Any] = list(shape.numbers)
        if moving:
            if not set(moving) <= set(free_numbers(node, shape)):
                floats = any(isinstance(n[k], float) for k in moving for n in all_numbers)
                user = "an assignment" if node.target in (written, put) else name_of(node)
                said = f"a number given to {user} changes from step to step" if floats else ""
                raise self.refuse(self._index_code(j), said, j)
            for k in range(len(numbers)) if node.target in _BOUNDS else moving:
                numbers[k] = self._number(j, tuple(n[k] for n in all_numbers))
        if node.target is torch.tensor and moving and not value_of(node).dim():
            self.value[j] = numbers[0]
            return
        if node.target is torch.tensor and not moving and value_of(node).dim():
            raise NeedsHoisting(j)
        self.calls[j] = (operands, numbers)
        self.value[j] = Ref("node", j)
        if (
            not moving
            and views.pure(node)
            and all(
                kind == "invariant" or (kind == "same" and (what in self.alike or what in self.hoisted))
                for kind, what in slots
            )
        ):
            self.alike.add(j)
        op = call(node) if node.args and isinstance(node.args[0], fx.Node) else None
        if op is not None and slots and not node.all_input_nodes[1:] and self._is_view(node):
            kind, what = slots[0]
            if kind == "invariant" and is_tensor(what):
                self.fixed[j] = (what, (op,))
            elif kind == "same" and what in self.fixed:
                source, before = self.fixed[what]
                self.fixed[j] = (source, (*before, op))

    def _index_code(self, j: int) -> reasons.Code:
        """A buffer read at a moving index is one thing, any other moving index another."""
        kind, what = self.slot(j, 0) if self.seq.shapes[self.start + j].nodes else ("", None)
        position = what if kind == "same" else what[0] if kind == "carry" else None  # type: ignore[index]
        if position is not None and self.node(0, position).target in (written, put):
            return reasons.BUFFER_READ
        return reasons.NOT_AFFINE

    @staticmethod
    def _is_view(node: fx.Node) -> bool:
        own, base = value_of(node), value_of(node.args[0])
        store = views.storage_of(own)
        return store is not None and store == views.storage_of(base)

    def _moving_view(self, j: int) -> bool:
        """``x[:, t]`` and the like: one tensor from before the loop, an index that moves."""
        indexed = [basic_index(self.node(r, j)) for r in range(self.runs)]
        if any(i is None for i in indexed):
            return False
        found = [i for i in indexed if i is not None]
        base, before = found[0][0], ()
        position = self.seq.position[base]
        if position >= self.start:
            position -= self.start
            if position in self.hoisted:
                base = self.node(0, position)
            elif position in self.fixed:
                base, before = self.fixed[position]  # type: ignore[assignment]
            elif position in self.alike:
                raise NeedsHoisting(position)
            else:
                return False
        elif any(i[0] is not base for i in found):
            return False
        places = [i[1] for i in found]
        moved = families.family(places)
        if moved is None and self.runs > 3:  # -1 is an index of its own: x[:, t - 1] at t = 0
            if any(families.family(places[k:]) is not None for k in (1, 2)):
                raise FirstDiffers
            if families.family(places[:-1]) is not None:
                raise LastDiffers
        if moved is None:
            return False
        self.value[j] = self._stream(base, (*before, *moved.ops), moved.direction, value_of(self.node(0, j)))
        return True

    def _moving_roll(self, j: int) -> bool:
        """``torch.roll`` of one tensor along one dimension, by another shift at each step."""
        node = self.node(0, j)
        kind, base = self.slot(j, 0) if self.seq.shapes[self.start + j].nodes else ("", None)
        calls = [families.roll_of(self.node(r, j)) for r in range(self.runs)]
        found = [c for c in calls if c is not None]
        if kind != "invariant" or len(found) != self.runs or len({dim for _, dim in found}) != 1:
            return False
        shifts = tuple(shift for shift, _ in found)
        op = ViewOp(families.rolled, (found[0][1], shifts))
        self.value[j] = self._stream(base, (op,), 1, value_of(node))
        return True

    def operand(self, j: int, slot: tuple[str, Any]) -> Ref:
        kind, what = slot
        if kind == "same":
            return self.value[what]
        if kind == "invariant":
            return self._invariant(what, j)
        if kind == "varying":
            return self._varying(what, j)
        position, inits = what
        return self._carry(position, inits, j)

    def _invariant(self, node: fx.Node, j: int) -> Ref:
        value = value_of(node)
        if not isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat)):
            raise self.refuse(reasons.SIDE_EFFECT, "the body uses a value that is not a tensor", j)
        if node not in self.invariants:
            self.invariants.append(node)
        return Ref("invariant", self.invariants.index(node))

    def _stream(self, source: Any, ops: tuple[ViewOp, ...], direction: int, value: Any) -> Ref:
        key = (source if isinstance(source, fx.Node) else repr(source), repr(ops), direction)
        if key not in self.stream_keys:
            self.stream_keys[key] = len(self.streams)
            self.streams.append(Draft(source, ops, direction, value))
        return Ref("stream", self.stream_keys[key])

    def _varying(self, nodes: tuple[fx.Node, ...], j: int) -> Ref:
        """Other nodes at each run: slices of one tensor, or tensors to stack."""
        if not all(is_tensor(n) for n in nodes):
            said = "the body uses another object at each step"
            if any(n.op == "get_attr" for n in nodes):
                said = "the body applies an autograd.Function whose gradient is not g times a slope"
            raise self.refuse(reasons.SIDE_EFFECT, said, j)
        if any(geometry(value_of(n)) != geometry(value_of(nodes[0])) for n in nodes):
            raise self.refuse(reasons.GROWING, "an input changes its shape from step to step", j)
        indexed = [basic_index(n) for n in nodes]
        found = [i for i in indexed if i is not None]
        if len(found) == len(nodes) and all(i[0] is found[0][0] for i in found):
            moved = families.family([i[1] for i in found])
            if moved is not None:
                return self._stream(found[0][0], moved.ops, moved.direction, value_of(nodes[0]))
        if any(_own_parameter(n) for n in nodes):
            raise self.refuse(reasons.OWN_PARAMETERS, "", j)
        gaps = {self.seq.position[b] - self.seq.position[a] for a, b in itertools.pairwise(nodes)}
        if len(gaps) > 1 or not all(n.op in ("call_function", "call_method") for n in nodes):
            self.clean = False
        return self._stream(nodes, (), 0, value_of(nodes[0]))

    def _number(self, j: int, numbers: tuple[Any, ...]) -> Ref:
        """A Python number that is another at each step, as a 0-dim tensor."""
        if any(isinstance(n, complex) for n in numbers):
            raise self.refuse(reasons.NOT_AFFINE, "a complex number changes from step to step", j)
        node = self.node(0, j)
        result = value_of(node)
        if not isinstance(result, torch.Tensor):
            raise self.refuse(reasons.NOT_AFFINE, "a size changes from step to step", j)
        whole = all(isinstance(n, int) for n in numbers)
        if gathers(node):
            return self._stream(numbers, (), 0, result.new_empty((), dtype=torch.int64))
        if node.target is torch.tensor:
            return self._stream(numbers, (), 0, result.new_empty(()))
        tensors = [value_of(n) for n in node.all_input_nodes if is_tensor(n)]
        tensors = [t for t in tensors if node.target not in _PICKS or t.dtype != torch.bool]
        dtype = result.dtype if result.dtype != torch.bool or not tensors else tensors[0].dtype
        dtype = dtype.to_real() if dtype.is_complex else dtype
        if not whole and not dtype.is_floating_point:
            raise self.refuse(reasons.NOT_AFFINE, "a number changes its kind from step to step", j)
        if whole and any(abs(n) > 2**24 for n in numbers) and dtype not in (torch.float64, torch.int64):
            raise self.refuse(reasons.NOT_AFFINE, "a large integer changes from step to step", j)
        alike = len({t.dtype for t in tensors}) == 1 and any(t.dim() for t in tensors)
        several = node.target in _PICKS or SCALED.get(node.target) in node.kwargs
        if node.target not in FILLS and not (alike and (len(tensors) == 1 or several)):
            raise self.refuse(reasons.NOT_AFFINE, "a number changes from step to step beside a scalar", j)
        return self._stream(numbers, (), 0, result.new_empty((), dtype=dtype))

    def _carry(self, position: int, inits: tuple[fx.Node, ...], j: int) -> Ref:
        """The value at ``position`` of an earlier run; one carry per run in between."""
        seen = value_of(self.node(0, position))
        if not isinstance(seen, torch.Tensor):
            raise self.refuse(reasons.CARRY_CHANGES, "a step hands on something that is not a tensor", j)
        for init in inits:
            if not is_tensor(init) or geometry(value_of(init)) != geometry(seen):
                raise FirstDiffers
        before: Ref | None = None
        for i in range(1, len(inits) + 1):
            key = (position, inits[len(inits) - i :])
            if key not in self.carry_keys:
                self.carry_keys[key] = len(self.carries)
                self.carries.append((position, inits[len(inits) - i], before))
            before = Ref("carry", self.carry_keys[key])
        assert before is not None
        return before


def _own_parameter(node: fx.Node) -> bool:
    """A parameter, a module attribute, or a view of one."""
    while node.op in ("call_function", "call_method"):
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or not is_tensor(node) or not is_tensor(first):
            return False
        if views.storage_of(value_of(node)) != views.storage_of(value_of(first)):
            return False
        node = first
    return node.op == "get_attr" or isinstance(value_of(node), torch.nn.Parameter)
