"""In-place operations out, versions in: a private copy of a graph in pure SSA form.

Takes a Dynamo graph; leaves a copy in which no node changes a tensor, with a ``Record``
(in ``meta``) that leads back to the original operations.  Reads of a slice that was just
written become the written value, so a state kept in a buffer turns into an ordinary
value handed from step to step.  A tensor written in a way that has no functional form
(resized, written through two graph inputs that share memory) is left as it is, and the
nodes that write it are ``Record.opaque``: no loop may contain them.  So are writes made
while gradients are off to a tensor that has some: they leave its derivative as it was.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import operator
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture import detached, growing, indexing, likened
from tenfuse.capture.families import Box, sliced, whole
from tenfuse.capture.loop import ViewOp
from tenfuse.capture.nested import composed, flatten
from tenfuse.capture.quiet import quiet, wants
from tenfuse.capture.record import KEY, Record, Views, put, written
from tenfuse.capture.slopes import Slopes
from tenfuse.capture.survey import ordinary, survey
from tenfuse.capture.versions import Storage
from tenfuse.capture.views import (
    All,
    Items,
    basic_index,
    call,
    geometry,
    is_tensor,
    key_of_shape,
    shape_of,
    static,
    storage_of,
    subscript,
    subscript_items,
    value_of,
)
from tenfuse.capture.writes import (
    OPERATORS,
    name_of,
    targets_written,
)


class _Copier:
    def __init__(self, gm: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in gm.graph.nodes:
            env[node] = self.graph.node_copy(node, lambda n: env[n])
        likened.settle(self.graph)
        indexing.part(self.graph)
        written_to = [t for n in self.graph.nodes for t in targets_written(n)]
        overwritten = {storage_of(value_of(t)) for t in written_to}
        growing.flatten(self.graph, overwritten)
        detached.align(self.graph, overwritten)
        self.ssa = fx.Graph()
        self.slopes = Slopes(gm, functionalize)
        self.record = Record(self.graph)
        self.nodes = list(self.graph.nodes)
        self.record.order = {n: i for i, n in enumerate(self.nodes)}
        self.env: dict[fx.Node, fx.Node] = {}
        self.state: dict[fx.Node, Storage] = {}
        self.chain: dict[fx.Node, tuple[ViewOp, ...]] = {}
        self.slices: dict[fx.Node, Items | None] = {}
        """Of a view that is one slice of its root: which."""
        self.box: dict[fx.Node, Box] = {}
        self.resolved: dict[fx.Node, tuple[int, fx.Node]] = {}
        self.shown: list[tuple[fx.Node, fx.Node, fx.Node]] = []
        """(node, view that it shows, version of the root that the view is of)."""
        found = survey(self.nodes)
        self.writes, self.record.root = found.writes, found.root
        self.record.writers, self.record.inplace = set(found.writes), found.inplace
        self.record.views = found.views
        self.quiet = quiet(self.nodes)
        self.tracked = {r for n, r in self.record.root.items() if wants(n)}
        """Roots of tensors with gradients."""
        self.tracked |= {
            self.record.root[w[0]]
            for n, w in self.writes.items()
            if n not in self.quiet and w[0] in self.record.root and any(map(wants, n.all_input_nodes))
        }

    # values ------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> fx.Node:
        """What ``node`` holds now."""
        root = self.record.root.get(node)
        if root is None:
            return self.env[node]
        state = self.state[root]
        if not self.chain[node]:
            return state.current
        if self.resolved.get(node, (-1, None))[0] != state.count:
            self.resolved[node] = (state.count, self._resolve(node, state))
        return self.resolved[node][1]

    def _resolve(self, node: fx.Node, state: Storage) -> fx.Node:
        """The value last written to this very slice, or the slice of the version that matters."""
        if node in self.record.inplace:  # the very view that it wrote to
            return self.value(node.args[0])  # type: ignore[arg-type]
        if not is_tensor(node):
            return self._replay(node, state, state.current)
        known, version = state.find(self.box[node])
        if known is not None:
            return known
        first = node.args[0]
        if isinstance(first, fx.Node) and self.box[node].cells is None and self.chain[first]:
            return self._again(node, self.value(first))
        return self._replay(node, state, version)

    def _again(self, node: fx.Node, base: fx.Node) -> fx.Node:
        """A view that is no slice, of whatever its base holds now."""
        if (node, base) not in self.cache:
            args = (base, *self.map(node.args[1:]))
            self.cache[node, base] = self._emit(node, node.op, node.target, args, self.map(node.kwargs))
        return self.cache[node, base]

    def _replay(self, node: fx.Node, state: Storage, version: fx.Node) -> fx.Node:
        cached = self.cache.get((node, version))
        if cached is not None:
            return cached
        first = node.args[0]
        assert isinstance(first, fx.Node)
        while first in self.record.inplace:
            assert isinstance(first.args[0], fx.Node)
            first = first.args[0]
        base = version if not self.chain[first] else self._replay(first, state, version)
        args, kwargs = (base, *self.map(node.args[1:])), self.map(node.kwargs)
        early = version is state.initial  # what the buffer held before is known before the steps
        with (
            self.ssa.inserting_after(max([base, *_nodes(args), *_nodes(kwargs)]))
            if early
            else contextlib.nullcontext()
        ):
            made = self._emit(node, node.op, node.target, args, kwargs)
        self.cache[node, version] = made
        return made

    def map(self, args: Any) -> Any:
        return fx.node.map_arg(args, self.value)

    def _emit(
        self, like: fx.Node, op: str, target: Any, args: tuple[Any, ...], kwargs: Any = None
    ) -> fx.Node:
        made = self.ssa.create_node(op, target, args, dict(kwargs or {}), like.name)
        made.meta = copy.copy(like.meta)
        self.record.origin[made] = like
        self.record.born[made] = self.now
        if self.record.order[like] == self.now:
            self.record.fresh.add(made)
        return made

    # the walk ------------------------------------------------------------------------------

    def run(self) -> fx.Graph:
        self.cache: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        node: fx.Node
        for node in self.nodes:
            self.now = self.record.order[node]
            self._note(node)
            if node in self.writes and node.args[0] in self.record.root:
                self._write(node)
            elif self.record.root.get(node, node) is not node:
                self._view(node)
            else:
                self.env[node] = made = self._copied(node)
                self.record.origin[made] = node
                self.record.born[made] = self.now
                self.record.fresh.add(made)
                if node in self.writes:
                    self.record.opaque[made] = ""
                if self.record.root.get(node) is node:
                    self.state[node] = Storage(node, made, made)
                    self.chain[node] = ()
                    self.slices[node] = (All(),) * value_of(node).dim() if is_tensor(node) else None
                    self.box[node] = whole(value_of(node))
                    self.record.versions[node] = [(self.record.order[node], made)]
        for node, operand, version in self.shown:
            if (operand, version) in self.cache:  # something else took it out
                self.record.reads[node][operand] = self.cache[operand, version]
        self._lifetimes()
        return self.ssa

    def _copied(self, node: fx.Node) -> fx.Node:
        found = self.slopes.of(node)
        if found is None:
            return self.ssa.node_copy(node, self.value)
        made = self.ssa.create_node("call_function", found[0], self.map(found[1]), {}, node.name)
        made.meta = copy.copy(node.meta)
        return made

    def _note(self, node: fx.Node) -> None:
        """Record what ``node`` reads; a view that is filled or viewed again is not taken out for it."""
        shown, reads = self._shown(node), dict[fx.Node, fx.Node]()
        for operand in node.all_input_nodes:
            if operand is not shown:
                reads[operand] = self.value(operand)
                continue
            known, version = self.state[self.record.root[operand]].find(self.box[operand])
            if known is not None:
                reads[operand] = known
            else:
                self.shown.append((node, operand, version))
        self.record.reads[node] = reads

    def _shown(self, node: fx.Node) -> fx.Node | None:
        """A slice of a written tensor of which ``node`` wants the place and not the value."""
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or not self.chain.get(first) or not is_tensor(first):
            return None
        filled = node in self.writes and (node.target is operator.setitem or name_of(node) == "copy_")
        viewed = node not in self.writes and self.record.root.get(node, node) is not node
        if not (filled or viewed) or self.box[first].cells is None or first in _nodes(node.args[1:]):
            return None
        return first

    def _view(self, node: fx.Node) -> None:
        first = node.args[0]
        assert isinstance(first, fx.Node)
        if likened.same(node, first):
            self.chain[node], self.box[node] = self.chain[first], self.box[first]
            self.slices[node] = self.slices.get(first)
            return
        op, found = call(node), basic_index(node)
        assert op is not None
        base, items = found if found is not None else (first, None)
        self.chain[node] = self._chained(base, items, (*self.chain[first], op))
        self.slices[node] = self._sliced(base, items)
        self.box[node] = self._box(node, first)

    def _sliced(self, base: fx.Node, items: Items | None) -> Items | None:
        """A slice of ``base`` as one of its root."""
        own = self.slices.get(base)
        return None if own is None or items is None else composed(own, items)

    def _chained(self, base: fx.Node, items: Items | None, chain: tuple[ViewOp, ...]) -> tuple[ViewOp, ...]:
        """``chain`` in one operation where it is a slice of a slice."""
        joined = self._sliced(base, items) if len(chain) > 1 else None
        return chain if joined is None else subscript(joined) or chain

    def _box(self, node: fx.Node, first: fx.Node) -> Box:
        found = basic_index(node)
        if found is not None and found[0] in self.box:
            return sliced(self.box[found[0]], found[1])
        inner = self.box[first]
        return Box(inner.hull, None)

    def _write(self, node: fx.Node) -> None:
        target = node.args[0]
        assert isinstance(target, fx.Node)
        state = self.state[self.record.root[target]]
        if node.target is operator.setitem:
            self._setitem(node, target, state)
            return
        value = self._computed(node, target)
        if not self.chain[target] and self.record.origin.get(value) is not node:
            seen = value.meta["example_value"]  # a version of its own: the source stays what it is
            value = self._emit(node, "call_method", "clone", (value,))
            value.meta["example_value"] = seen
        if is_tensor(node):
            self.chain[node] = self.chain[target]
            self.slices[node] = self.slices.get(target)
            self.box[node] = self.box[target]
        self._store(node, state, target, self.chain[target], self.box[target], value)

    def _computed(self, node: fx.Node, target: fx.Node) -> fx.Node:
        """The value an in-place operation gives its target, as ordinary operations."""
        name = name_of(node)
        if name == "copy_":
            return self._fitted(node, target, node.args[1])
        old = self.value(target)
        if name == "zero_":
            return self._emit(node, "call_function", torch.zeros_like, (old,))
        if name == "fill_" and not isinstance(node.args[1], fx.Node):
            return self._emit(node, "call_function", torch.full_like, (old, node.args[1]))
        if name == "fill_":
            return self._fitted(node, target, node.args[1])
        rest, kwargs = self.map(node.args[1:]), dict(self.map(node.kwargs))
        if kwargs.pop("inplace", False):
            made = self._emit(node, node.op, node.target, (old, *rest), kwargs)
        elif node.target in OPERATORS:
            made = self._emit(node, "call_function", OPERATORS[node.target], (old, *rest), kwargs)
        elif node.op == "call_method":
            made = self._emit(node, "call_method", name[:-1], (old, *rest), kwargs)
        else:
            made = self._emit(node, "call_function", ordinary(node), (old, *rest), kwargs)
        made.meta["example_value"] = value_of(target)
        dtype = value_of(target).dtype
        if any(value_of(n).dtype != dtype for n in node.all_input_nodes if is_tensor(n)):
            made = self._emit(node, "call_method", "to", (made, dtype))
            made.meta["example_value"] = value_of(target)
        return made

    def _fitted(self, node: fx.Node, like: fx.Node, source: Any) -> fx.Node:
        """``source`` with the dtype and the shape of ``like``."""
        value, seen, want = self.value(source), value_of(source), value_of(like)
        if seen.dtype != want.dtype or seen.device != want.device:
            value = self._emit(node, "call_method", "to", (value, want.dtype))
            value.meta["example_value"] = want.new_empty(seen.shape)
        if geometry(seen)[0] != geometry(want)[0]:
            value = self._emit(node, "call_method", "expand_as", (value, self.value(like)))
            value.meta["example_value"] = want
        return value

    def _setitem(self, node: fx.Node, target: fx.Node, state: Storage) -> None:
        _, index, source = node.args
        base = value_of(target)
        if self._advanced(index):
            made = self._masked(node, target) or self._emit(
                node, "call_function", put, (self.value(target), *self.map((index, source)))
            )
            made.meta["example_value"] = base
            self.record.holder[made] = target
            self._store(node, state, target, self.chain[target], self.box[target], made)
            return
        items = subscript_items(index, base)
        box = sliced(self.box[target], items) if items is not None else Box(self.box[target].hull, None)
        op = ViewOp(operator.getitem, (index,))
        value = self.map(source)
        if isinstance(source, fx.Node) and is_tensor(source):
            shape = shape_of(items, base) if items is not None else None
            seen = value_of(source)
            if shape != key_of_shape(seen) or seen.dtype != base.dtype or seen.device != base.device:
                value = self._fit_slice(node, _probe(target, index, _symbolic(base, index)), target, source)
        chain = self._chained(target, items, (*self.chain[target], op))
        self._store(node, state, target, chain, box, value)

    def _fit_slice(self, node: fx.Node, like: fx.Node, target: fx.Node, source: fx.Node) -> fx.Node:
        value, seen, want = self.value(source), value_of(source), value_of(like)
        if seen.dtype != want.dtype or seen.device != want.device:
            value = self._emit(node, "call_method", "to", (value, want.dtype))
            value.meta["example_value"] = want.new_empty(seen.shape)
        if geometry(seen)[0] != geometry(want)[0]:
            extra = seen.dim() - want.dim()
            if extra > 0:
                value = self._emit(node, "call_method", "reshape", (value, tuple(seen.shape)[extra:]))
                value.meta["example_value"] = want.new_empty(seen.shape[extra:])
            sizes = tuple(-1 if static(s) is None else s for s in want.shape)
            if any(s == -1 for s in sizes) and geometry(seen)[0][-want.dim() :] != geometry(want)[0]:
                part = self._emit(
                    node, "call_function", operator.getitem, (self.value(target), self.map(like.args[1]))
                )
                part.meta["example_value"] = want
                value = self._emit(node, "call_method", "expand_as", (value, part))
            elif geometry(value_of(value))[0] != geometry(want)[0]:
                value = self._emit(node, "call_method", "expand", (value, *sizes))
            value.meta["example_value"] = want
        return value

    def _masked(self, node: fx.Node, target: fx.Node) -> fx.Node | None:
        """``h[mask] = number`` as a choice, entry by entry."""
        _, mask, source = node.args
        base, number = value_of(target), value_of(source) if isinstance(source, fx.Node) else source
        if not (is_tensor(mask) and value_of(mask).dtype is torch.bool and value_of(mask).dim()):
            return None
        if isinstance(number, torch.Tensor):
            if number.dim() or number.dtype != base.dtype or number.device != base.device:
                return None
        elif not isinstance(number, (int, float)) or not base.is_floating_point():
            return None
        else:
            source = float(number)
        chosen, missing = self.value(mask), base.dim() - value_of(mask).dim()  # type: ignore[arg-type]
        if missing:
            index = (Ellipsis, *[None] * missing)
            seen = value_of(mask)[index]
            chosen = self._emit(node, "call_function", operator.getitem, (chosen, index))
            chosen.meta["example_value"] = seen
        return self._emit(node, "call_function", torch.where, (chosen, self.map(source), self.value(target)))

    @staticmethod
    def _advanced(index: Any) -> bool:
        entries = index if isinstance(index, tuple) else (index,)
        return any(isinstance(e, (list, bool)) or (isinstance(e, fx.Node) and is_tensor(e)) for e in entries)

    def _store(
        self, node: fx.Node, state: Storage, target: fx.Node, chain: tuple[ViewOp, ...], box: Box, value: Any
    ) -> None:
        """Record that ``value`` now stands in the slice ``chain`` of the root."""
        if node in self.quiet and wants(value):
            value = self._detached(node, value)
        known = value if isinstance(value, fx.Node) else None
        if not chain:
            assert known is not None
            version = known
        else:
            if known is not None and state.find(box)[0] is known:
                self.record.idle.add(node)
                return
            ops = tuple(ViewOp(o.target, self.map(o.args), o.kwargs) for o in chain)
            with self._place(known, state.current):
                version = self._emit(node, "call_function", written, (state.current, value, Views(ops)))
            version.meta["example_value"] = value_of(state.root)
            self.record.holder[version] = state.root
        state.write(box, known, version)
        if node in self.quiet and state.root in self.tracked:
            self.record.opaque[version] = "a tensor with gradients is written while gradients are off"
        at = self.record.order[node]
        self.record.versions[state.root].append((at, version))
        self.record.origin.setdefault(version, node)

    def _detached(self, node: fx.Node, value: fx.Node) -> fx.Node:
        """``value`` as it enters a tensor while gradients are off."""
        with self.ssa.inserting_after(value):
            made = self._emit(node, "call_method", "detach", (value,))
        made.meta["example_value"] = value_of(value).detach()
        return made

    def _place(self, value: fx.Node | None, current: fx.Node) -> Any:
        """A slice is written as soon as its value is known, wherever the user put the line."""
        if value is not None and current < value:
            return self.ssa.inserting_after(value)
        return contextlib.nullcontext()

    def _lifetimes(self) -> None:
        """When each value's origin is overwritten."""
        record = self.record
        times = {root: [at for at, _ in versions[1:]] for root, versions in record.versions.items()}
        for made, node in record.origin.items():
            root = record.root.get(node)
            if root is None and node in self.writes:
                root = record.root.get(self.writes[node][0])
            if root is None:
                continue
            fresh = made in record.fresh
            moments = times.get(root, [])
            place = bisect.bisect_right(moments, record.born[made] if fresh else record.born[made] - 1)
            if place < len(moments):
                record.dies[made] = moments[place]


def _nodes(args: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(args, found.append)
    return found


def _symbolic(base: torch.Tensor, index: Any) -> torch.Tensor:
    entries = index if isinstance(index, tuple) else (index,)

    def shown(entry: Any) -> Any:
        if isinstance(entry, fx.Node):
            return value_of(entry)
        if isinstance(entry, slice):
            return slice(shown(entry.start), shown(entry.stop), shown(entry.step))
        return entry

    with torch.no_grad():
        found: torch.Tensor = base[tuple(shown(e) for e in entries)]
    return found


def _probe(target: fx.Node, index: Any, shown: torch.Tensor) -> fx.Node:
    """A getitem node outside any graph the user sees, to read a subscript with."""
    scratch = fx.Graph()
    base = scratch.placeholder("base")
    base.meta["example_value"] = value_of(target)
    node = fx.Node(scratch, "probe", "call_function", operator.getitem, (), {})
    node._args = (base, index)  # type: ignore[attr-defined]
    node.meta["example_value"] = shown
    return node


def functionalize(gm: fx.GraphModule) -> fx.GraphModule:
    """A private copy of ``gm`` in SSA form; ``rewrite.lower`` turns it back."""
    copier = _Copier(gm)
    ssa = copier.run()
    flatten(ssa)
    made = fx.GraphModule(gm, fx.Graph(), class_name=type(gm).__name__)
    for node in ssa.nodes:
        if node.op in ("get_attr", "call_module"):
            fx.graph_module._copy_attr(gm, made, str(node.target))
    made._graph = ssa
    ssa.owning_module = made
    made.meta = {**getattr(gm, "meta", {}), KEY: copier.record}
    return made
