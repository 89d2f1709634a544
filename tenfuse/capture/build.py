"""From a segment to a ``Loop``: the role of every value that crosses the step's border.

Takes a ``Segment`` of the SSA graph; leaves a ``Loop`` (unproved) or raises ``Refused``
with the user's line, or ``FirstDiffers`` when only the first run does not fit (its state
has another shape) and should stay outside.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx as fx

from tenfuse import reasons
from tenfuse.capture import families, views
from tenfuse.capture.body import Body, Draft, Ref
from tenfuse.capture.families import FLIP, Box, Family
from tenfuse.capture.loop import BufferWrite, Carry, Final, Loop, Span, Stacked, Stream, ViewOp
from tenfuse.capture.periods import Sequence
from tenfuse.capture.record import Record, put, written
from tenfuse.capture.segment import ARITHMETIC, Operands, Segment
from tenfuse.capture.views import basic_index, call, geometry, is_tensor, value_of
from tenfuse.reasons import refuse, where


class FirstDiffers(Exception):
    """The first run enters with a state of another shape or type: peel it."""


class LastDiffers(Exception):
    """The last run reads at an index that wraps around: leave it outside."""


class _NeedsHoisting(Exception):
    """A slice moves over a value that every step computes alike: compute it once, before."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


@dataclasses.dataclass(frozen=True)
class Built:
    loop: Loop
    clean: bool
    """No stream had to be stacked from separately computed tensors."""
    sliced: bool
    """Some stream consists of slices of one tensor."""


class _Build:
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

    def run(self) -> Built:
        self._find_buffers()
        for j in range(self.period):
            if j in self.hoisted:
                self.value[j] = self._invariant(self.node(0, j), j)
            elif j not in self.buffers:
                self._visit(j)
        uses, ys = self._escapes()
        writes = self._writes(ys)
        if not self.streams and not ys and self.carries:
            raise self.refuse(reasons.FIXED_POINT, "", 0)
        return self._loop(uses, ys, writes)

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
        operands: list[Any] = [self._operand(j, s) for s in slots]
        numbers: list[Any] = list(shape.numbers)
        if moving:
            if node.target not in ARITHMETIC:
                raise self.refuse(self._index_code(j), "", j)
            for k in moving:
                numbers[k] = self._number(j, tuple(n[k] for n in all_numbers))
        if node.target is torch.tensor and moving and len(shape.numbers) == 1:
            self.value[j] = numbers[0]
            return
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
                raise _NeedsHoisting(position)
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

    def _operand(self, j: int, slot: tuple[str, Any]) -> Ref:
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
        if node.target is torch.tensor:
            return self._stream(numbers, (), 0, result)
        tensors = [value_of(n) for n in node.all_input_nodes if is_tensor(n)]
        dtype = result.dtype if result.dtype != torch.bool else tensors[0].dtype
        dtype = dtype.to_real() if dtype.is_complex else dtype
        whole = all(isinstance(n, int) for n in numbers)
        if not whole and not dtype.is_floating_point:
            raise self.refuse(reasons.NOT_AFFINE, "a number changes its kind from step to step", j)
        if whole and any(abs(n) > 2**24 for n in numbers) and dtype not in (torch.float64, torch.int64):
            raise self.refuse(reasons.NOT_AFFINE, "a large integer changes from step to step", j)
        if len(tensors) != 1 or tensors[0].dim() == 0:
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

    # what leaves the loop -----------------------------------------------------------------

    def _escapes(self) -> tuple[dict[fx.Node, Final | Stacked], list[int]]:
        """Values used after the loop; ``ys`` are body positions, in order."""
        outside: dict[int, list[int]] = {}
        for run in range(self.runs):
            for j in range(self.period):
                node = self.node(run, j)
                if node in self.region and any(u not in self.region for u in node.users):
                    outside.setdefault(j, []).append(run)
        for j in self._mutated():
            outside.setdefault(j, [])
            if self.runs - 1 not in outside[j]:
                outside[j].append(self.runs - 1)
        uses: dict[fx.Node, Final | Stacked] = {}
        ys: list[int] = []
        for j, runs in sorted(outside.items()):
            if j in self.buffers:
                if runs != [self.runs - 1] or j != self.chains[self.buffers[j]][1][-1]:
                    raise self.refuse(reasons.BUFFER_READ, "a half-filled buffer is read after the loop", j)
                continue
            if j in self.fixed or (
                self.value[j].kind == "stream" and j not in self.calls and self._is_slice(j)
            ):
                continue
            if not is_tensor(self.node(0, j)):
                raise self.refuse(reasons.CARRY_CHANGES, "a value read after the loop is not a tensor", j)
            if runs == [self.runs - 1]:
                uses[self.node(runs[0], j)] = Final(self._final(j))
                continue
            ys.append(j)
            for run in runs:
                uses[self.node(run, j)] = Stacked(len(ys) - 1, run)
        return uses, ys

    def _is_slice(self, j: int) -> bool:
        return basic_index(self.node(0, j)) is not None

    def _final(self, j: int) -> int:
        for i, (position, _, before) in enumerate(self.carries):
            if position == j and before is None:
                return i
        self.carries.append((j, None, None))
        return len(self.carries) - 1

    def _mutated(self) -> Iterator[int]:
        """Last versions of tensors from before the loop that the loop changes in place."""
        record = self.record
        for root, versions in record.versions.items():
            inside = [(at, v) for at, v in versions if v in self.region]
            if not inside:
                continue
            at, last = inside[-1]
            if versions[0][1] in self.region:
                self._check_aliases(root, at)
                continue
            run, j = divmod(self.seq.position[last] - self.start, self.period)
            if run != self.runs - 1:
                raise self.refuse(reasons.ALIASED_WRITE, "a tensor is written in place by some steps only", j)
            yield j

    def _check_aliases(self, root: fx.Node, at: float) -> None:
        """A tensor made inside the loop and written after it may leave under one name only."""
        record = self.record
        end = max(record.order[record.origin[n]] for n in self.region if n in record.origin)
        if not any(when > end for when, _ in record.versions[root]):
            return
        later = [node for node in record.reads if record.order.get(node, -1) > end]
        names = {
            m for node in later for m in node.all_input_nodes
            if record.root.get(m) is root and record.order.get(m, end + 1) <= end
        }  # fmt: skip
        filled = any(m in names and m not in record.reads[n] for n in later for m in n.all_input_nodes)
        if len(names) > 1 or filled:
            raise refuse(reasons.ALIASED_WRITE, "", where(root))

    def _writes(self, ys: list[int]) -> list[tuple[fx.Node, fx.Node, int, Family]]:
        found = []
        for init, chain in self.chains:
            boxes = []
            for j in chain:
                every = [self.node(r, j).args[2] for r in range(self.runs)]
                moved, own = self._write_family(init, j, [v.ops for v in every])  # type: ignore[union-attr]
                boxes.append(own)
                y = self._written_value(j)
                if y not in ys:
                    ys.append(y)
                found.append((init, self.node(self.runs - 1, chain[-1]), ys.index(y), moved))
            if len(chain) > 1 and not _order_free(boxes):
                raise self.refuse(reasons.ALIASED_WRITE, "writes of different steps overlap", chain[0])
        return found

    def _written_value(self, j: int) -> int:
        """The body position whose value is written; made up for a plain number."""
        value = self.node(0, j).args[1]
        if isinstance(value, fx.Node):
            kind, what = self.slot(j, 1)
            if kind == "same" and self.value[what] == Ref("node", what):
                return int(what)
            self.value[j] = self._operand(j, (kind, what))
            return j
        seen = families.apply(value_of(self.node(0, j)), self.node(0, j).args[2].ops)  # type: ignore[union-attr]
        if isinstance(value, (int, float)) and all(views.static(s) is not None for s in seen.shape):
            if any(self.node(r, j).args[1] != value for r in range(self.runs)):
                raise self.refuse(reasons.NOT_AFFINE, "another number is written at each step", j)
            self.value[j] = Ref("constant", j)
            return j
        raise self.refuse(reasons.ALIASED_WRITE, "a number is written through a view", j)

    def _write_family(
        self, init: fx.Node, j: int, runs: list[tuple[ViewOp, ...]]
    ) -> tuple[Family, list[Box]]:
        base = value_of(init)
        moved = families.family_of_ops(base, runs)
        if moved is None or not families.apart(moved, base):
            raise self.refuse(reasons.NOT_AFFINE, "the slices written do not move evenly, or overlap", j)
        return moved, [families.box_of_ops(base, ops) for ops in runs]

    # putting it together --------------------------------------------------------------------

    def _loop(
        self,
        uses: dict[fx.Node, Final | Stacked],
        ys: list[int],
        writes: list[tuple[fx.Node, fx.Node, int, Family]],
    ) -> Built:
        directions = [d.direction for d in self.streams] + [w[3].direction for w in writes]
        reverse = directions.count(-1) > directions.count(1)
        order = -1 if reverse else 1
        first = [self.node(0, j) for j in range(self.period)]
        step = Body(first, self.carries, self.streams, self.invariants, self.value, self.calls)
        body, live = step.graph(ys)
        loop = Loop(
            body=body,
            carries=tuple(Carry(f"carry{i}", init) for i, (_, init, _) in enumerate(self.carries)),
            streams=tuple(
                _finished(f"x{i}", d, order) for i, d in enumerate(self.streams) if ("stream", i) in live
            ),
            invariants=tuple(n for i, n in enumerate(self.invariants) if ("invariant", i) in live),
            steps=self.runs,
            reverse=reverse,
            span=Span("", 0),
            nodes=self.nodes,
            uses={n: _turned(u, self.runs) if reverse else u for n, u in uses.items()},
            writes=tuple(
                BufferWrite(init, version, y, moved.ops if moved.direction == order else (*moved.ops, FLIP))
                for init, version, y, moved in writes
            ),
        )
        return Built(loop, self.clean, any(d.direction for d in self.streams))


def _finished(name: str, draft: Draft, order: int) -> Stream:
    if not draft.direction:
        source = draft.source if order > 0 else tuple(reversed(draft.source))
        return Stream(name, source, draft.ops)
    ops = draft.ops
    if ops[-1].target is families.rolled:
        dim, shifts = ops[-1].args
        turned = ViewOp(families.rolled, (dim, shifts if order > 0 else tuple(reversed(shifts))))
        return Stream(name, draft.source, (*ops[:-1], turned))
    return Stream(name, draft.source, ops if draft.direction == order else (*ops, FLIP))


def _turned(use: Final | Stacked, steps: int) -> Final | Stacked:
    return dataclasses.replace(use, t=steps - 1 - use.t) if isinstance(use, Stacked) else use


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


def _order_free(chain: list[list[Box]]) -> bool:
    """Whether writing family by family leaves the same contents as writing step by step."""
    for i, later in enumerate(chain):
        for earlier in chain[i + 1 :]:
            # in the loop, `later` at a later step overwrites `earlier` of this step
            if families.overlaps_after(earlier, later):
                return False
    return True


def _closure(seq: Sequence, segment: Segment, position: int) -> set[int]:
    """``position`` and the positions of the first run that it is computed from."""
    found: set[int] = set()
    stack = [position]
    while stack:
        j = stack.pop()
        if j not in found:
            found.add(j)
            operands = (seq.position[n] - segment.start for n in seq.shapes[segment.start + j].nodes)
            stack += [k for k in operands if k >= 0]
    return found


def build(seq: Sequence, ops: Operands, record: Record, segment: Segment) -> Built:
    """The loop of ``segment``, before it is proved."""
    hoisted: set[int] = set()
    while True:
        try:
            return _Build(seq, ops, record, segment, frozenset(hoisted)).run()
        except _NeedsHoisting as need:
            hoisted |= _closure(seq, segment, need.position)


__all__ = ["Built", "FirstDiffers", "LastDiffers", "build"]
