"""Put a fused loop in the place of its unrolled steps.

Takes the SSA copy of a graph, one of its ``Loop``s and a graph ``fused(*inits, *streams,
*invariants) -> (*finals, *ys)``; edits the copy's own version of the user's graph, in which
in-place operations are still in place, so what no loop touches stays exactly as written.
``lower.lower`` hands that graph out.  A value that the user's graph overwrites before the loop
reads it is cloned where it still stands.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import BufferWrite, Final, Loop, Stacked, Stream, ViewOp, Whole
from tenfuse.capture.record import Record, record
from tenfuse.rewrite.buffers import FACTORIES, laid_out, time_in, view_ops
from tenfuse.rewrite.region import region_of


class _Splice:
    def __init__(self, gm: fx.GraphModule, loop: Loop, fused: fx.GraphModule) -> None:
        self.gm, self.loop, self.fused = gm, loop, fused
        self.record: Record = record(gm)
        self.graph = self.record.graph
        self.inside = set(loop.nodes)
        place = region_of(self.record, loop)
        self.lo, self.hi, self.region, self.behind = place.lo, place.hi, place.nodes, place.behind
        self.members, self.alive = set(place.nodes), set(self.graph.nodes)
        self.anchor = self.region[0]
        holders = (n for n in loop.body.graph.nodes if n.op == "placeholder")
        values = (n.meta.get("example_value") for n in holders)
        self.differentiable = any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)
        self.held: dict[fx.Node, fx.Node] = {}
        self.fresh: dict[fx.Node, fx.Node] = {}
        self.wholes: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        with self.graph.inserting_before(self.anchor):
            outs = self._inline([*self._inits(), *self._streams(), *map(self._steady, self.loop.invariants)])
            count = len(self.loop.carries)
            self.finals, self.ys = outs[:count], outs[count:]
            if isinstance(self.loop.steps, int):
                self.record.steps |= dict.fromkeys(self.ys, self.loop.steps)
            self._remember()
            for write in self.loop.writes:
                self._write_buffer(write)
            self._write_roots()
            self._restore_mode()
        self._replace_uses()
        self._erase()
        self._register()

    # inputs ---------------------------------------------------------------------------------

    def _hold(self, value: fx.Node) -> fx.Node:
        """A node of the user's graph that holds ``value`` at the loop."""
        rec = self.record
        if value in rec.spliced:
            return rec.spliced[value]
        if value in rec.slices:
            return self._pick(*rec.slices[value])
        holder = rec.holder.get(value, rec.origin[value])
        holder = rec.moved.get(holder, holder)
        if rec.dies.get(value, self.lo) < self.lo:
            return self._clone(value, holder)
        if holder in self.members:
            return self._again(value)
        self.held[holder] = value
        if value in rec.dies and self.differentiable:
            return self.graph.call_function(torch.clone, (holder,))  # saved for backward, then overwritten
        return holder

    def _again(self, value: fx.Node) -> fx.Node:
        """A view whose node goes with the steps, of what they left in its tensor."""

        def given(a: fx.Node) -> fx.Node:
            return self._escape(a) if a in self.loop.uses else self._hold(a)

        made = self.graph.create_node(
            value.op, value.target, fx.node.map_arg(value.args, given), fx.node.map_arg(value.kwargs, given)
        )
        made.meta = dict(value.meta)
        self.record.spliced[value] = made
        return made

    def _steady(self, value: fx.Node) -> fx.Node:
        """A node that still holds ``value`` when the loop's own writes are done.

        The backward reads what the loop was given, so that must not be overwritten.
        """
        node, rec = self._hold(value), self.record
        root = rec.root.get(rec.holder.get(value, rec.origin.get(value, value)))
        if root is None or self._base(root) not in self._overwritten() or value in rec.copies.values():
            return node
        return self.graph.call_function(torch.clone, (node,))

    def _overwritten(self) -> set[fx.Node]:
        """Tensors from before the loop that it writes."""
        return {self._buffer(w) for w in self.loop.writes} | {base for base, _ in self._written_roots()}

    def _pick(self, ys: fx.Node, t: int) -> fx.Node:
        made = self.graph.call_function(torch.select, (ys, 0, t))
        self.record.picks[made] = (ys, t)
        return made

    def _clone(self, value: fx.Node, holder: fx.Node) -> fx.Node:
        """Keep a value that is overwritten before the loop, at the moment it still stands."""
        rec = self.record
        at = next(n for n in self.graph.nodes if rec.order.get(n) == rec.born[value])
        with self.graph.inserting_after(at) if value in rec.fresh else self.graph.inserting_before(at):
            copy = self.graph.call_function(torch.clone, (holder,))
        rec.order[copy] = rec.born[value]
        rec.reads[copy] = {holder: value}
        rec.copies[copy] = value
        rec.spliced[value] = copy
        return copy

    def _inits(self) -> Iterator[fx.Node]:
        for carry in self.loop.carries:
            if carry.init is not None:
                yield self._steady(carry.init)

    def _streams(self) -> Iterator[fx.Node]:
        for i, stream in enumerate(self.loop.streams):
            yield self._stream(stream, i)

    def _stream(self, stream: Stream, i: int) -> fx.Node:
        if isinstance(stream.source, fx.Node):
            return view_ops(self.graph, self._steady(stream.source), stream.views)
        nodes = [s for s in stream.source if isinstance(s, fx.Node)]
        if nodes:
            whole = self.graph.call_function(torch.stack, ([self._hold(n) for n in nodes],))
        else:
            whole = self._numbers(list(stream.source), i)
        return view_ops(self.graph, whole, stream.views)

    def _numbers(self, numbers: list[Any], i: int) -> fx.Node:
        holder = [n for n in self.loop.body.graph.nodes if n.op == "placeholder"][len(self.loop.carries) + i]
        seen = holder.meta["example_value"]
        return self.graph.call_function(
            torch.tensor, (numbers,), {"dtype": seen.dtype, "device": seen.device}
        )

    def _inline(self, args: list[fx.Node]) -> list[fx.Node]:
        holders = [n for n in self.fused.graph.nodes if n.op == "placeholder"]
        env: dict[fx.Node, fx.Node] = dict(zip(holders, args, strict=True))
        for node in self.fused.graph.nodes:
            if node.op == "output":
                return list(fx.node.map_arg(node.args[0], lambda n: env[n]))
            if node.op in ("get_attr", "call_module"):
                env[node] = self._attribute(node, env)
            elif node.op != "placeholder":
                env[node] = self.graph.node_copy(node, lambda n: env[n])
        raise ValueError("the fused graph has no output")

    def _attribute(self, node: fx.Node, env: dict[fx.Node, fx.Node]) -> fx.Node:
        """Bring a constant or submodule of ``fused`` along under a free name."""
        value: Any = self.fused
        for part in str(node.target).split("."):
            value = getattr(value, part)
        name = next(f"_tenfuse_{i}" for i in range(10**6) if not hasattr(self.gm, f"_tenfuse_{i}"))
        setattr(self.gm, name, value)
        made = self.graph.node_copy(node, lambda n: env[n])
        made.target = name
        return made

    # outputs --------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Later loops find the values of this one in its outputs."""
        for value, use in self.loop.uses.items():
            if isinstance(use, (Final, Whole)):
                self.record.spliced[value] = self._escape(value)
            elif isinstance(use, Stacked):
                self.record.spliced.pop(value, None)
                self.record.slices[value] = (self.ys[use.y], use.t)

    def _base(self, root: fx.Node) -> fx.Node:
        return self.record.moved.get(root, root)

    def _buffer(self, write: BufferWrite) -> fx.Node:
        rec = self.record
        return self._base(rec.root[rec.holder.get(write.buffer, rec.origin[write.buffer])])

    def _takes_place(self, write: BufferWrite, ys: fx.Node) -> bool:
        """Let the loop's own output be the buffer: if the user made the buffer only to fill it.

        It must be fresh, unread until now, not written later, filled whole, and laid out alike.
        """
        root = self._buffer(write)
        buffer, stacked = root.meta.get("example_value"), ys.meta.get("example_value")
        early = any(self.record.order.get(u, self.lo) < self.lo for u in root.users)
        late = any(at > self.hi for at, _ in self.record.versions.get(root, ()))
        if root.target not in FACTORIES or early or late or root in self.record.moved or buffer is None:
            return False
        dim = time_in(buffer, write.views)
        if dim is None or stacked is None or laid_out(stacked.movedim(0, dim)) != laid_out(buffer):
            return False
        made = self.graph.call_function(torch.movedim, (ys, 0, dim))
        made.meta["example_value"] = buffer
        root.replace_all_uses_with(made, lambda user: self.record.order.get(user, -1) > self.hi)
        self.record.moved[root] = made
        return True

    def _write_buffer(self, write: BufferWrite) -> None:
        ops, ys = write.views, self.ys[write.y]
        if self._takes_place(write, ys):
            return
        if ops and ops[-1].target is torch.flip:
            ops, ys = ops[:-1], self.graph.call_function(torch.flip, (ys, (0,)))
        self.graph.call_method("copy_", (view_ops(self.graph, self._buffer(write), ops), ys))

    def _written_roots(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Tensors from before the loop that it changes as a whole, and their last contents."""
        filled = {w.version for w in self.loop.writes}
        for root, versions in self.record.versions.items():
            inside = [v for _, v in versions if v in self.inside]
            base = self._base(root)
            if inside and base not in self.members and inside[-1] not in filled and base in self.alive:
                yield base, inside[-1]

    def _write_roots(self) -> None:
        for base, last in self._written_roots():
            self.graph.call_method("copy_", (base, self._escape(last)))

    def _restore_mode(self) -> None:
        """The grad mode after the loop is the one its last step left."""
        modes = [n for n in self.region if n.target is torch._C._set_grad_enabled]
        if modes:
            self.graph.call_function(torch._C._set_grad_enabled, modes[-1].args)

    def _escape(self, value: fx.Node) -> fx.Node:
        use = self.loop.uses[value]
        if isinstance(use, Whole):
            if value not in self.wholes:
                self.wholes[value] = self._whole_output(use)
            return self.wholes[value]
        return self.finals[use.carry] if isinstance(use, Final) else self._pick(self.ys[use.y], use.t)

    def _whole_output(self, use: Whole) -> fx.Node:
        if use.first is None:
            return self.ys[use.y]
        first = view_ops(self.graph, self._hold(use.first), (ViewOp(operator.getitem, (slice(0, 1),)),))
        return self.graph.call_function(torch.cat, ([first, self.ys[use.y]],))

    # the rest of the graph ------------------------------------------------------------------

    def _replace_uses(self) -> None:
        users = {u for m in self.region for u in m.users if self.record.order.get(u, -1) > self.hi}
        for user in sorted(users, key=lambda n: self.record.order[n]):
            if user in self.record.idle and not user.users:
                self.graph.erase_node(user)
                continue
            places = {m: self._place(user, m) for m in user.all_input_nodes if m in self.members}
            _swap(user, {m: made for m, made in places.items() if made is not None})

    def _place(self, user: fx.Node, member: fx.Node) -> fx.Node | None:
        """What ``user`` reads in place of ``member``; None where that stays."""
        rec = self.record
        root = rec.root.get(member)
        if root is not None and root not in self.members:
            # A view of a tensor from before the loop stays, with the tensor.
            return self._base(root) if member is not root and self._whole(member) else None
        if member not in rec.reads[user] and member not in rec.copies:
            return None  # a view of a view that nothing reads
        value = rec.copies[member] if member in rec.copies else self._read(user, member, root)
        name = member if root is None or not self._whole(member) else root
        with self.graph.inserting_before(self.anchor):
            if name in rec.moved:
                made = rec.moved[name]
            elif value in self.loop.uses:
                made = self._own(root, name, value)
            elif value in self.inside:
                self._read_past(user)
                return None
            else:
                made = self._hold(value)
        rec.reads[user][made] = value
        return made

    def _read_past(self, view: fx.Node) -> None:
        """What reads a view of a tensor that goes with the steps reads what the view showed."""
        for reader in list(view.users):
            value = self.record.reads[reader].get(view)
            if value is not None and self._shows(value):
                made = self._shown(value)
                reader.replace_input_with(view, made)
                self.record.reads[reader][made] = value

    def _shows(self, value: fx.Node) -> bool:
        """Whether ``value`` is a result of the loop, or a view of one."""
        if value in self.loop.uses:
            return True
        base = value.args[0] if value.args and self.record.origin.get(value) in self.record.views else None
        return isinstance(base, fx.Node) and self._shows(base)

    def _shown(self, value: fx.Node) -> fx.Node:
        """A node for what ``_shows`` accepts."""
        if value in self.loop.uses:
            return self._own(None, value, value)
        if value not in self.record.spliced:
            base = value.args[0]
            assert isinstance(base, fx.Node)
            rest = fx.node.map_arg((value.args[1:], value.kwargs), self._hold)
            made = self.graph.create_node(value.op, value.target, (self._shown(base), *rest[0]), rest[1])
            made.meta = dict(value.meta)
            self.record.spliced[value] = made
        return self.record.spliced[value]

    def _read(self, user: fx.Node, member: fx.Node, root: fx.Node | None) -> fx.Node:
        """The value ``user`` reads; for a view that went behind the loop, what it shows there."""
        rec, value = self.record, self.record.reads[user][member]
        if value not in self.inside or value in self.loop.uses or root is None:
            return value
        shown = [a for v in self.behind.get(user, ()) for a in v.all_input_nodes if a in self.loop.uses]
        return next((a for a in shown if rec.root.get(rec.origin[a]) is root), value)

    def _own(self, root: fx.Node | None, name: fx.Node, value: fx.Node) -> fx.Node:
        """The value; a copy of it, under its old name, if the user's graph goes on to write it."""
        if value not in self.fresh:
            made = self._escape(value)
            if root is not None and any(at > self.hi for at, _ in self.record.versions[root]):
                made = self.graph.call_function(torch.clone, (made,))
            self.fresh[value] = made
        if root is not None:
            self.record.moved[name] = self.fresh[value]
        return self.fresh[value]

    def _whole(self, member: fx.Node) -> bool:
        """An in-place operation returns the very tensor it changed."""
        node: Any = member
        root = self.record.root[member]
        while node is not root:
            if node not in self.record.inplace:
                return False
            node = node.args[0]
        return True

    def _erase(self) -> None:
        """Remove the unrolled steps; slices of older tensors stay while something reads them."""
        versions = {self.record.origin[w.version] for w in self.loop.writes}
        wanted = {
            self.record.origin[n]
            for n in self.loop.nodes
            if n not in self.loop.uses and any(u not in self.inside for u in n.users)
        } - versions
        for node in reversed(self.region):
            if not node.users and node not in wanted:
                self.graph.erase_node(node)
                continue
            for arg in node.all_input_nodes:
                root = self.record.root.get(arg)
                if arg in self.members and root is not None and arg is not root and self._whole(arg):
                    node.replace_input_with(arg, self._base(root))

    def _register(self) -> None:
        """New nodes stand where the loop stood, and read what they were given."""
        rec = self.record
        for node in self.graph.nodes:
            if node not in rec.order:
                rec.order[node] = self.lo
                rec.reads[node] = {m: self.held[m] for m in node.all_input_nodes if m in self.held}


def _swap(user: fx.Node, places: dict[fx.Node, fx.Node]) -> None:
    """Let ``user`` read other nodes, all at once: a stack of all steps reads as many as there are steps."""
    if places:
        user.args = fx.node.map_arg(user.args, lambda n: places.get(n, n))
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: places.get(n, n))


def splice(gm: fx.GraphModule, loop: Loop, fused: fx.GraphModule) -> None:
    """Replace ``loop`` by the nodes of ``fused`` in the graph that ``lower`` will return."""
    _Splice(gm, loop, fused).run()


__all__ = ["splice"]
