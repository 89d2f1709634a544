"""The proof: unroll a ``Loop`` again and compare it with the graph, node by node.

Takes only the SSA graph and the ``Loop``; shares no code with the rolling.  Runs the body
symbolically once per step: each body node must meet the next node of the original region
with the same operation and, after following carries, slices and invariants, the very
same operands.  Nodes that have no counterpart in the body must be views of tensors from
before the loop, or writes that a ``BufferWrite`` accounts for.  Every value read after the
loop must be named in ``uses`` or ``writes``.  Leaves one sentence; raises ``Refused``.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np
import torch
import torch.fx as fx

from tenfuse.capture.families import rolled
from tenfuse.capture.loop import Final, Loop, Stacked, Stream, ViewOp
from tenfuse.capture.record import Views, written
from tenfuse.capture.views import pure, static
from tenfuse.reasons import UNPROVED, Refused, refuse


def _fail(detail: str) -> Refused:
    return refuse(UNPROVED, f"unrolled again, {detail}")


def _text(size: Any) -> Any:
    known = static(size)
    return str(size) if known is None else known


def _cells(value: torch.Tensor) -> tuple[Any, ...]:
    """The memory a tensor shows: storage, offset, sizes, strides, element type."""
    shape = tuple(_text(s) for s in value.shape)
    strides = tuple(_text(s) if n != 1 else 0 for n, s in zip(shape, value.stride(), strict=True))
    memory = value.untyped_storage()._cdata
    return (
        memory,
        _text(value.storage_offset()),
        shape,
        strides,
        value.dtype,
        value.is_conj(),
        value.is_neg(),
    )


def _numeric_cells(value: torch.Tensor, ops: tuple[ViewOp, ...]) -> tuple[Any, ...] | None:
    """``_cells`` of a chain of subscripts, by numpy's arithmetic on an array that holds nothing."""
    geometry = (*value.shape, *value.stride(), value.storage_offset())
    if not all(isinstance(v, int) for v in geometry) or 0 in value.shape:
        return None
    array = np.lib.stride_tricks.as_strided(np.zeros(1, dtype=np.int8), tuple(value.shape), value.stride())
    start = array.__array_interface__["data"][0]
    for op in ops:
        if op.target is not operator.getitem or op.kwargs or not _plain(op.args[0]):
            return None
        index = op.args[0] if isinstance(op.args[0], tuple) else (op.args[0],)
        array = array[index if any(i is Ellipsis for i in index) else (*index, ...)]
    if not array.size:
        return None
    offset = array.__array_interface__["data"][0] - start + value.storage_offset()
    strides = tuple(s if n != 1 else 0 for n, s in zip(array.shape, array.strides, strict=True))
    memory = value.untyped_storage()._cdata
    return (memory, offset, array.shape, strides, value.dtype, value.is_conj(), value.is_neg())


def _plain(index: Any) -> bool:
    if isinstance(index, tuple):
        return all(_plain(i) for i in index) and not any(isinstance(i, tuple) for i in index)
    if isinstance(index, slice):
        return all(v is None or type(v) is int for v in (index.start, index.stop, index.step))
    return index is None or index is Ellipsis or type(index) is int


def _shown(value: torch.Tensor, ops: tuple[ViewOp, ...]) -> torch.Tensor:
    with torch.no_grad():
        for op in ops:
            value = op.target(value, *op.args, **dict(op.kwargs))
    return value


@dataclasses.dataclass(frozen=True)
class _Slice:
    """What step ``run`` receives of stream ``index``."""

    index: int
    run: int


class _Source:
    """One stream, ready to say whether a node is its slice at memory index ``t``."""

    def __init__(self, stream: Stream | None, source: fx.Node, views: tuple[ViewOp, ...], steps: int) -> None:
        self.shifts: tuple[int, ...] | None = None
        self.dim = 0
        if views and views[-1].target is rolled:
            if len(views) != 1 or len(views[-1].args[1]) != steps:
                raise _fail("a roll is not the only thing done to a stream")
            self.dim, self.shifts = views[-1].args
            return
        self.flipped = bool(views) and views[-1].target is torch.flip
        if self.flipped and views[-1].args != ((0,),):
            raise _fail("a stream is flipped along another dimension")
        ops = views[:-1] if self.flipped else views
        seen = source.meta["example_value"]
        self.stacked = _shown(seen, ops)
        self.steps = steps
        if self.stacked.dim() == 0 or _text(self.stacked.shape[0]) != steps:
            raise _fail("a stream does not have one entry per step")
        self.first = _cells(self.stacked[0])
        if self.first[0] != seen.untyped_storage()._cdata:
            raise _fail("a stream is not a view of its source")
        self.offset, self.stride = self.stacked.storage_offset(), self.stacked.stride(0)

    def cells(self, t: int) -> tuple[Any, ...]:
        at = self.steps - 1 - t if self.flipped else t
        return (self.first[0], _text(self.offset + at * self.stride), *self.first[2:])


class _Proof:
    def __init__(self, loop: Loop) -> None:
        if not isinstance(loop.steps, int):
            raise _fail("the trip count is symbolic")
        self.loop, self.steps = loop, loop.steps
        self.region = set(loop.nodes)
        holders = [n for n in loop.body.graph.nodes if n.op == "placeholder"]
        self.body = [n for n in loop.body.graph.nodes if n.op in ("call_function", "call_method")]
        nc, ns = len(loop.carries), len(loop.streams)
        if len(holders) != nc + ns + len(loop.invariants):
            raise _fail("the body has another number of inputs")
        self.carry_in, self.stream_in, self.inv_in = holders[:nc], holders[nc : nc + ns], holders[nc + ns :]
        output = next(n for n in loop.body.graph.nodes if n.op == "output")
        self.next, self.ys = output.args[0]  # type: ignore[misc]
        self.sources = {
            i: _Source(s, s.source, s.views, self.steps)
            for i, s in enumerate(loop.streams)
            if isinstance(s.source, fx.Node)
        }
        self.versions = {w.version for w in loop.writes}
        self.cursor = 0
        self.views: set[fx.Node] = set()
        self.matched = 0
        self.twins: dict[tuple[fx.Node, fx.Node], bool] = {}
        self.made_of: list[dict[fx.Node, Any]] = []

    def memory(self, run: int) -> int:
        return self.steps - 1 - run if self.loop.reverse else run

    # equality of a symbolic value and an operand of the graph ---------------------------

    def same(self, value: Any, operand: Any) -> bool:
        if isinstance(value, _Slice):
            return self.is_slice(value, operand)
        return value is operand or (operand in self.region and self.twin(value, operand))

    def twin(self, ours: Any, theirs: Any) -> bool:
        """Both compute the same pure function of the same operands, so they are equal."""
        if ours is theirs:
            return True
        if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node):
            key = (ours, theirs)
            if key not in self.twins:
                self.twins[key] = (
                    (ours.op, ours.target) == (theirs.op, theirs.target)
                    and _repeatable(ours)
                    and self.twin(ours.args, theirs.args)
                    and self.twin(dict(ours.kwargs), dict(theirs.kwargs))
                )
            return self.twins[key]
        if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
            return len(ours) == len(theirs) and all(
                self.twin(a, b) for a, b in zip(ours, theirs, strict=True)
            )
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return ours.keys() == theirs.keys() and all(self.twin(ours[k], theirs[k]) for k in ours)
        if isinstance(ours, slice) and isinstance(theirs, slice):
            return all(self.twin(getattr(ours, k), getattr(theirs, k)) for k in ("start", "stop", "step"))
        return type(ours) is type(theirs) and not isinstance(ours, fx.Node) and repr(ours) == repr(theirs)

    def is_slice(self, value: _Slice, operand: Any) -> bool:
        stream, t = self.loop.streams[value.index], self.memory(value.run)
        if isinstance(stream.source, tuple):
            if len(stream.source) != self.steps or stream.views:
                return False
            entry = stream.source[t]
            if isinstance(entry, fx.Node):
                return operand is entry and entry not in self.region
            if isinstance(operand, fx.Node):
                return self.is_number(operand, entry, self.stream_in[value.index].meta["example_value"])
            return type(entry) is type(operand) and repr(entry) == repr(operand)
        source = self.sources[value.index]
        if source.shifts is not None:
            return self.is_roll(operand, stream.source, source.shifts[t], source.dim)
        if not isinstance(operand, fx.Node) or not self.is_view(operand, stream.source):
            return False
        return _cells(operand.meta["example_value"])[1:] == source.cells(t)[1:]

    @staticmethod
    def is_number(node: fx.Node, number: Any, like: torch.Tensor) -> bool:
        """``node`` is ``torch.tensor(number)`` with the type of the body's input."""
        value = node.meta["example_value"]
        return (
            node.target is torch.tensor
            and len(node.args) == 1
            and type(node.args[0]) is type(number)
            and repr(node.args[0]) == repr(number)
            and set(node.kwargs) <= {"dtype", "device"}
            and (value.dtype, value.device, value.dim()) == (like.dtype, like.device, 0)
        )

    def is_roll(self, node: Any, base: fx.Node, shift: int, dim: int) -> bool:
        """``node`` is ``torch.roll(base, shift, dim)``."""
        if not isinstance(node, fx.Node) or node.target not in (torch.roll, "roll"):
            return False
        names = ("input", "shifts", "dims")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        dims = given.get("dims")
        shifts = given.get("shifts")
        dims = (
            dims
            if isinstance(dims, int)
            else dims[0]
            if isinstance(dims, (tuple, list)) and len(dims) == 1
            else None
        )
        shifts = (
            shifts if isinstance(shifts, int) else shifts[0] if isinstance(shifts, (tuple, list)) else None
        )
        rank = node.meta["example_value"].dim()
        return self.same(base, given["input"]) and shifts == shift and dims is not None and dims % rank == dim

    def is_view(self, node: Any, base: fx.Node) -> bool:
        """``node`` is ``base`` seen through view operations only."""
        memory = node.meta["example_value"].untyped_storage()._cdata
        while isinstance(node, fx.Node) and not self.same(base, node):
            if (
                node.target is written
                or not _aliases(node, memory)
                or node.op not in ("call_function", "call_method")
            ):
                return False
            node = node.args[0] if node.args else None
        return isinstance(node, fx.Node) and _aliases(node, memory)

    def equal(self, ours: Any, theirs: Any, env: dict[fx.Node, Any]) -> bool:
        """A body argument against an argument of the graph."""
        if isinstance(ours, fx.Node):
            return self.same(env[ours], theirs)
        if isinstance(theirs, fx.Node) or type(ours) is not type(theirs):
            both = (list, fx.immutable_collections.immutable_list)
            if not (isinstance(ours, both) and isinstance(theirs, both)) and not (
                isinstance(ours, dict) and isinstance(theirs, dict)
            ):
                return False
        if isinstance(ours, (tuple, list)):
            return len(ours) == len(theirs) and all(
                self.equal(a, b, env) for a, b in zip(ours, theirs, strict=True)
            )
        if isinstance(ours, dict):
            return ours.keys() == theirs.keys() and all(self.equal(ours[k], theirs[k], env) for k in ours)
        if isinstance(ours, slice):
            return all(
                self.equal(getattr(ours, k), getattr(theirs, k), env) for k in ("start", "stop", "step")
            )
        if isinstance(ours, Views):
            return ours == theirs
        if isinstance(ours, float):
            return repr(ours) == repr(theirs)
        return ours is theirs or bool(ours == theirs)

    # the walk ----------------------------------------------------------------------------

    def run(self) -> str:
        values: list[Any] = [c.init for c in self.loop.carries]
        for value in values:
            if value is not None and value in self.region:
                raise _fail("the state enters from inside the loop")
        if any(n in self.region for n in self.loop.invariants):
            raise _fail("an invariant comes from inside the loop")
        for run in range(self.steps):
            env: dict[fx.Node, Any] = dict(zip(self.carry_in, values, strict=True))
            env |= {p: _Slice(i, run) for i, p in enumerate(self.stream_in)}
            env |= dict(zip(self.inv_in, self.loop.invariants, strict=True))
            for ours in self.body:
                self.meet(ours, env)
            values = [env[n] for n in self.next]
            self.made_of.append(env)
        self.rest()
        self.finals = values
        self.check_writes()
        self.check_uses()
        return (
            f"unrolled again over {self.steps} steps: {self.matched} nodes equal the graph's, "
            f"{len(self.loop.uses)} values read later and {len(self.loop.writes)} writes accounted for"
        )

    def made_up(self, ours: fx.Node) -> bool:
        """A constant that only a ``BufferWrite`` uses: the graph writes the number itself."""
        return (
            ours.target is torch.full
            and not any(isinstance(a, fx.Node) for a in ours.args)
            and all(u.op == "output" for u in ours.users)
        )

    def meet(self, ours: fx.Node, env: dict[fx.Node, Any]) -> None:
        while self.cursor < len(self.loop.nodes):
            theirs = self.loop.nodes[self.cursor]
            if self.agree(ours, theirs, env):
                self.cursor += 1
                self.matched += 1
                env[ours] = theirs
                return
            if self.made_up(ours):
                env[ours] = ours
                return
            self.skip(theirs)
            self.cursor += 1
        raise _fail(f"a step computes {ours.name}, which the graph does not")

    def agree(self, ours: fx.Node, theirs: fx.Node, env: dict[fx.Node, Any]) -> bool:
        if ours.op != theirs.op or ours.target != theirs.target:
            return False
        return self.equal(ours.args, theirs.args, env) and self.equal(
            dict(ours.kwargs), dict(theirs.kwargs), env
        )

    def skip(self, node: fx.Node) -> None:
        """A node of the graph that the body lacks must be explained by something else."""
        if node.target is written:
            return  # check_writes accounts for it
        if node.target is torch.tensor and not node.all_input_nodes:
            self.views.add(node)
            return
        value = node.meta.get("example_value")
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], torch.Tensor):
            memory = value[0].untyped_storage()._cdata
        elif isinstance(value, torch.Tensor):
            memory = value.untyped_storage()._cdata
        else:
            raise _fail(f"{node.name} is missing")
        first = node.args[0] if node.args else None
        if (
            isinstance(first, fx.Node)
            and _aliases(node, memory)
            and (first not in self.region or first in self.views)
        ):
            self.views.add(node)
            return
        if pure(node) and (node in self.loop.uses or all(u in self.region for u in node.users)):
            self.views.add(node)  # whoever reads it is compared with what the body reads instead
            return
        raise _fail(f"{node.name} is missing")

    def rest(self) -> None:
        for node in self.loop.nodes[self.cursor :]:
            self.skip(node)

    # what leaves -------------------------------------------------------------------------

    def check_writes(self) -> None:
        """Every write of the graph is one slice of one ``BufferWrite``, in chains."""
        met = {v for env in self.made_of for v in env.values() if isinstance(v, fx.Node)}
        stores = [n for n in self.loop.nodes if n.target is written and n not in met]
        if len(stores) != self.steps * len(self.loop.writes):
            raise _fail("another number of slices is written")
        by_version: dict[fx.Node, list[int]] = {}
        for i, write in enumerate(self.loop.writes):
            by_version.setdefault(write.version, []).append(i)
        for version, indices in by_version.items():
            node: Any = version
            for run in reversed(range(self.steps)):
                for i in reversed(indices):
                    self.check_write(node, i, run)
                    node = node.args[0]
            if any(self.loop.writes[i].buffer is not node for i in indices) or node in self.region:
                raise _fail("a buffer starts from another tensor")

    def check_write(self, node: Any, i: int, run: int) -> None:
        write, t = self.loop.writes[i], self.memory(run)
        if not isinstance(node, fx.Node) or node.target is not written or node not in self.region:
            raise _fail("a slice is not written in the order of the steps")
        if len(node.users) != 1 and node is not write.version:
            raise _fail("a half-filled buffer is read")
        if i not in self.write_sources():
            raise _fail("a buffer has no description")
        value, views = node.args[1], node.args[2]
        ours = self.ys[write.y]
        mapped = self.made_of[run][ours]
        if isinstance(mapped, fx.Node) and self.made_up(mapped):
            if mapped.args[1] != value or type(mapped.args[1]) is not type(value):
                raise _fail("another number is written")
        elif not self.same(mapped, value):
            raise _fail("another value is written")
        assert isinstance(views, Views)
        cells = self.cells_written(write.buffer, views)
        if cells != self._write_sources[i].cells(t):
            raise _fail("another slice is written")

    def write_sources(self) -> dict[int, _Source]:
        if not hasattr(self, "_write_sources"):
            self._write_sources = {
                i: _Source(None, w.buffer, w.views, self.steps) for i, w in enumerate(self.loop.writes)
            }
            for source in self._write_sources.values():
                if not _disjoint(source.stacked):
                    raise _fail("slices written at different steps overlap")
        return self._write_sources

    def cells_written(self, buffer: fx.Node, views: Views) -> tuple[Any, ...]:
        seen = buffer.meta["example_value"]
        return _numeric_cells(seen, views.ops) or _cells(_shown(seen, views.ops))

    def check_uses(self) -> None:
        for node in self.loop.nodes:
            if all(u in self.region for u in node.users):
                if node in self.loop.uses:
                    self.check_use(node)
                continue
            if node in self.loop.uses:
                self.check_use(node)
            elif node not in self.versions and node not in self.views:
                raise _fail(f"{node.name} is read after the loop but not kept")

    def check_use(self, node: fx.Node) -> None:
        use = self.loop.uses[node]
        if isinstance(use, Final):
            value: Any = self.finals[use.carry]
        else:
            assert isinstance(use, Stacked)
            if not 0 <= use.t < self.steps:
                raise _fail("a value is read at a step that does not exist")
            value = self.made_of[self.memory(use.t)][self.ys[use.y]]
        if not self.same(value, node):
            raise _fail(f"{node.name} has another value after the loop")


def _aliases(node: fx.Node, memory: int) -> bool:
    value = node.meta.get("example_value")
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(p, torch.Tensor) and p.untyped_storage()._cdata == memory for p in parts)


def _repeatable(node: fx.Node) -> bool:
    """Asked again it gives the same value: a pure function, or a tuple of views."""
    value = node.meta.get("example_value")
    if isinstance(value, (tuple, list)):
        first = node.args[0] if node.args else None
        seen = first.meta.get("example_value") if isinstance(first, fx.Node) else None
        return isinstance(seen, torch.Tensor) and _aliases(node, seen.untyped_storage()._cdata)
    return pure(node)


def _disjoint(stacked: torch.Tensor) -> bool:
    """No entry of memory is shown twice, judged from sizes and strides."""
    dims = [(s, n) for n, s in zip(stacked.shape, stacked.stride(), strict=True) if _text(n) != 1]
    if any(not isinstance(v, int) for d in dims for v in d):
        return not any(_text(s) == 0 for s, _ in dims)
    reach = 0
    for stride, size in sorted(dims):
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def prove(loop: Loop) -> str:
    """One sentence of evidence; raises ``Refused`` (TF106) when anything differs."""
    return _Proof(loop).run()
