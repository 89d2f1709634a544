"""An ``associative_scan`` that Dynamo unrolled into a tree becomes one loop again.

With ``combine_mode="generic"`` (the only one without an accelerator) Dynamo traces through
the operator's recursion: slices of every second entry, the combine function under vmap, and
interleaving, about fifty nodes per level.  Takes the SSA copy; leaves one ``Loop`` per
tree.  The tree is proved by running it on *ranges*: every entry of every tensor is
followed as the range of original entries it combines, each combination must join two
neighbouring ranges with the same body, and the results must be the ranges 0..t.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import Carry, Final, Loop, Stacked, Stream, ViewOp, Whole
from tenfuse.capture.record import plant, record
from tenfuse.capture.scan import span_of_scan
from tenfuse.capture.views import is_tensor, pure, static, value_of
from tenfuse.reasons import UNPROVED, Refused, refuse

Range = tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A tensor of the tree: which leaf it holds, and the range in each of its rows."""

    leaf: int
    rows: tuple[Range, ...]


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Two tensors stacked on dimension 1, before they are flattened into one."""

    leaf: int
    first: tuple[Range, ...]
    second: tuple[Range, ...]


@dataclasses.dataclass(frozen=True)
class _Lane:
    """One row of a tensor, inside the vmapped combine function."""

    slot: int
    rows: _Rows


@dataclasses.dataclass(frozen=True)
class _Inner:
    """A value computed by the combine function."""

    index: int


def trees(nodes: list[fx.Node]) -> list[list[fx.Node]]:
    """Ranges of nodes that may be such a tree, from their first slices to their last result."""
    found: list[list[fx.Node]] = []
    at = 0
    while at < len(nodes):
        if _name(nodes[at]) != "_vmap_increment_nesting":
            at += 1
            continue
        start = at
        while start > 0 and (
            _halves(nodes[start - 1]) or _name(nodes[start - 1]) == "lazy_load_decompositions"
        ):
            start -= 1
        stop = _reach(nodes, start)
        if stop is not None:
            found.append(nodes[start:stop])
        at = max(at + 1, stop or 0)
    return found


def _halves(node: fx.Node) -> bool:
    """Every second entry of a tensor, along its first dimension."""
    return _name(node).startswith("slice") and node.args[1:2] == (0,) and node.args[4:] == (2,)


def _reach(nodes: list[fx.Node], start: int) -> int | None:
    """Behind the last node that holds a result, as far as the nodes from ``start`` make one tree."""
    tree, stop = _Tree(nodes[start:]), None
    for at in range(start, len(nodes)):
        try:
            tree.step(nodes[at])
        except Refused:
            break
        if tree.is_result(nodes[at]):
            stop = at + 1
    return stop


def _name(node: fx.Node) -> str:
    return (
        str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    )


class _Tree:
    def __init__(self, nodes: list[fx.Node]) -> None:
        self.nodes = nodes
        self.member = set(nodes)
        self.env: dict[fx.Node, Any] = {}
        self.leaves: list[fx.Node] = []
        self.lanes: list[_Lane] = []
        self.inner: list[fx.Node] = []
        self.results: list[Any] = []
        self.template: tuple[Any, ...] | None = None
        self.body: list[fx.Node] = []
        self.body_env: dict[fx.Node, Any] = {}
        self.body_results: list[Any] = []
        self.joined: list[_Rows] = []

    def fail(self, node: fx.Node) -> Refused:
        return refuse(UNPROVED, f"a tree of combinations holds {node.name}, which does not fit")

    def run(self) -> None:
        for node in self.nodes:
            self.step(node)

    def step(self, node: fx.Node) -> None:
        name = _name(node)
        if name in ("lazy_load_decompositions", "_vmap_increment_nesting"):
            return
        if name == "_vmap_decrement_nesting":
            self.close(node)
        elif name == "_add_batch_dim":
            self.open_lane(node)
        elif name == "_remove_batch_dim":
            self.leave_lane(node)
        elif self.lanes:
            self.env[node] = _Inner(len(self.inner))
            self.inner.append(node)
        else:
            self.env[node] = self.rearranged(node, name)

    # entries of tensors ------------------------------------------------------------------

    def rows(self, node: Any) -> _Rows:
        if not isinstance(node, fx.Node):
            raise refuse(UNPROVED, "a tree of combinations has a constant in place of a tensor")
        if node in self.env:
            if not isinstance(self.env[node], _Rows):
                raise self.fail(node)
            return self.env[node]
        if node in self.member or not is_tensor(node) or static(value_of(node).shape[0]) is None:
            raise self.fail(node)
        self.leaves.append(node)
        count = int(value_of(node).shape[0])
        self.env[node] = _Rows(len(self.leaves) - 1, tuple((t, t) for t in range(count)))
        return self.env[node]

    def rearranged(self, node: fx.Node, name: str) -> _Rows | _Pairs:
        """Slices, joins and interleavings of rows."""
        if name.startswith("slice") and len(node.args) >= 2 and node.args[1] == 0:
            rows = self.rows(node.args[0])
            return _Rows(rows.leaf, rows.rows[slice(*node.args[2:])])  # type: ignore[arg-type]
        if name == "cat" and (node.kwargs.get("dim", 0) == 0 or node.args[1:] == (0,)):
            parts = [self.rows(p) for p in node.args[0]]  # type: ignore[union-attr]
            if len({p.leaf for p in parts}) == 1:
                return _Rows(parts[0].leaf, tuple(r for p in parts for r in p.rows))
        if name == "pad" and self.pads_one_row(node):
            rows = self.rows(node.args[0])
            return _Rows(rows.leaf, (*rows.rows, None))
        if name == "stack" and (node.kwargs.get("dim") == 1 or node.args[1:] == (1,)):
            a, b = (self.rows(p) for p in node.args[0])  # type: ignore[union-attr]
            if a.leaf == b.leaf and len(a.rows) == len(b.rows):
                return _Pairs(a.leaf, a.rows, b.rows)
        pairs = self.env.get(node.args[0]) if name == "flatten" else None  # type: ignore[arg-type]
        ends = (node.kwargs.get("start_dim"), node.kwargs.get("end_dim"))
        if isinstance(pairs, _Pairs) and (0, 1) in (ends, node.args[1:]):
            both = zip(pairs.first, pairs.second, strict=True)
            return _Rows(pairs.leaf, tuple(r for pair in both for r in pair))
        raise self.fail(node)

    def pads_one_row(self, node: fx.Node) -> bool:
        pad = list(node.args[1])  # type: ignore[arg-type]
        return len(pad) == 2 * value_of(node).dim() and pad[-1] == 1 and not any(pad[:-1])

    # the combine function ------------------------------------------------------------------

    def open_lane(self, node: fx.Node) -> None:
        if node.args[1] != 0 or self.results or self.inner:
            raise self.fail(node)
        lane = _Lane(len(self.lanes), self.rows(node.args[0]))
        self.lanes.append(lane)
        self.env[node] = lane

    def leave_lane(self, node: fx.Node) -> None:
        if node.args[3] != 0 or not isinstance(node.args[0], fx.Node):
            raise self.fail(node)
        if not self.results:
            self.join(node)
        leaf = len(self.results)
        if leaf >= len(self.joined):
            raise self.fail(node)
        self.results.append(self.inward(node.args[0]))
        self.env[node] = self.joined[leaf]

    def join(self, node: fx.Node) -> None:
        """The ranges that one call of the combine function makes."""
        half = len(self.lanes) // 2
        if half * 2 != len(self.lanes) or half != len(self.leaves):
            raise self.fail(node)
        left, right = [lane.rows for lane in self.lanes[:half]], [lane.rows for lane in self.lanes[half:]]
        if [r.leaf for r in left] != list(range(half)) or [r.leaf for r in right] != list(range(half)):
            raise self.fail(node)
        if len({r.rows for r in left}) != 1 or len({r.rows for r in right}) != 1:
            raise self.fail(node)
        out: list[Range] = []
        for a, b in zip(left[0].rows, right[0].rows, strict=True):
            if a is None or b is None or a[1] + 1 != b[0]:
                raise self.fail(node)
            out.append((a[0], b[1]))
        self.joined = [_Rows(i, tuple(out)) for i in range(half)]

    def inward(self, arg: Any) -> Any:
        """An argument inside the combine function, comparable between calls."""
        if isinstance(arg, fx.Node):
            known = self.env.get(arg)
            if isinstance(known, _Lane):
                return ("lane", known.slot)
            if isinstance(known, _Inner):
                return known
            if arg in self.member or arg in self.env:
                raise self.fail(arg)
            return arg
        if isinstance(arg, (tuple, list)):
            return tuple(self.inward(a) for a in arg)
        if isinstance(arg, dict):
            return tuple((k, self.inward(v)) for k, v in sorted(arg.items()))
        return (type(arg).__name__, repr(arg))

    def close(self, node: fx.Node) -> None:
        calls = tuple((n.op, n.target, self.inward(n.args), self.inward(dict(n.kwargs))) for n in self.inner)
        found = (calls, tuple(self.results))
        if len(self.results) != len(self.leaves):
            raise self.fail(node)
        if self.template is None:
            self.template, self.body, self.body_results = found, self.inner, self.results
        elif found != self.template:
            raise refuse(UNPROVED, "the combine function differs from call to call")
        self.lanes, self.inner, self.results = [], [], []

    # the loop --------------------------------------------------------------------------------

    def is_result(self, node: fx.Node) -> bool:
        """Whether row t of ``node`` combines the entries 0..t, for every t."""
        rows = self.env.get(node)
        count = int(value_of(self.leaves[0]).shape[0]) if self.leaves else 0
        return isinstance(rows, _Rows) and count > 1 and rows.rows == tuple((0, t) for t in range(count))

    def results_of(self, unread: set[fx.Node]) -> dict[fx.Node, int]:
        """The nodes read outside -> their leaf; each must hold the ranges 0..t."""
        found: dict[fx.Node, int] = {}
        for node in self.nodes:
            if all(u in self.member or u in unread for u in node.users):
                continue
            if not self.is_result(node):
                raise self.fail(node)
            found[node] = self.env[node].leaf
        return found


def _step_body(tree: _Tree, ys: list[int]) -> tuple[fx.GraphModule, list[int], list[int], list[fx.Node]]:
    """(body, live carries, live streams, invariants): only what the stacked results need."""
    count = len(tree.leaves)
    needed = _needed(tree, ys)
    carries = [i for i in range(count) if ("lane", i) in needed]
    streams = [i for i in range(count) if ("lane", count + i) in needed]
    outside = [n for n in needed if isinstance(n, fx.Node)]
    graph = fx.Graph()
    made: dict[Any, fx.Node] = {}
    entries = [(("lane", i), f"carry{i}", tree.leaves[i]) for i in carries]
    entries += [(("lane", count + i), f"x{i}", tree.leaves[i]) for i in streams]
    for key, name, leaf in entries:
        made[key] = graph.placeholder(name)
        made[key].meta["example_value"] = value_of(leaf)[0]
    for i, node in enumerate(outside):
        made[node] = graph.placeholder(f"w{i}")
        made[node].meta["example_value"] = value_of(node)
    place = {n: i for i, n in enumerate(tree.body)}
    for index, node in enumerate(tree.body):
        if _Inner(index) not in needed:
            continue

        def moved(arg: fx.Node) -> fx.Node:
            return made[_Inner(place[arg])] if arg in place else made[_key(tree, arg)]

        new = graph.node_copy(node, moved)
        new.meta = dict(node.meta) | {"example_value": _computed(new)}
        made[_Inner(index)] = new
    graph.output(
        (tuple(made[tree.body_results[i]] for i in carries), tuple(made[tree.body_results[i]] for i in ys))
    )
    return fx.GraphModule(torch.nn.Module(), graph), carries, streams, outside


def _key(tree: _Tree, node: fx.Node) -> Any:
    known = tree.env.get(node)
    return ("lane", known.slot) if isinstance(known, _Lane) else node


def _computed(node: fx.Node) -> Any:
    """The fake result of a body node."""
    args = fx.node.map_arg(node.args, value_of)
    kwargs = fx.node.map_arg(node.kwargs, value_of)
    target: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    with torch.no_grad():
        return target(*args, **kwargs)


def _needed(tree: _Tree, ys: list[int]) -> dict[Any, None]:
    """Lanes, inner values and outside nodes that the results ``ys`` depend on, over all steps."""
    needed: dict[Any, None] = {}
    stack = [tree.body_results[i] for i in ys]
    place = {n: _Inner(i) for i, n in enumerate(tree.body)}
    while stack:
        key = stack.pop()
        if key in needed:
            continue
        needed[key] = None
        if isinstance(key, _Inner):
            stack += [place.get(a, _key(tree, a)) for a in tree.body[key.index].all_input_nodes]
        elif isinstance(key, tuple) and key[1] < len(tree.leaves):
            stack.append(tree.body_results[key[1]])
    return needed


def _unread(gm: fx.GraphModule) -> set[fx.Node]:
    """What nothing reads in the end, such as a result the user dropped."""
    rec, found = record(gm), set()
    for node in reversed(list(gm.graph.nodes)):
        origin = rec.origin.get(node)
        free = origin in rec.views or (pure(node) and origin not in rec.writers)
        if free and all(u in found for u in node.users):
            found.add(node)
    rec.dead |= {rec.origin[n] for n in found}
    return found


def tree_loop(gm: fx.GraphModule, nodes: list[fx.Node]) -> Loop | Refused:
    """The loop that a tree of combinations computes, or why it stays."""
    try:
        tree = _Tree(nodes)
        tree.run()
        found = tree.results_of(_unread(gm))
        if tree.template is None or not found:
            raise refuse(UNPROVED, "a tree of combinations combines nothing")
        ys = sorted(set(found.values()))
        body, carries, streams, outside = _step_body(tree, ys)
    except Refused as refused:
        return refused
    count = int(value_of(tree.leaves[0]).shape[0])
    inits = [
        plant(gm, nodes[0], operator.getitem, (tree.leaves[i], 0), value_of(tree.leaves[i])[0])
        for i in carries
    ]
    uses: dict[fx.Node, Final | Stacked | Whole] = {
        n: Whole(ys.index(i), tree.leaves[i]) for n, i in found.items()
    }
    later = (ViewOp(operator.getitem, (slice(1, None),)),)
    return Loop(
        body=body,
        carries=tuple(Carry(f"carry{i}", n) for i, n in zip(carries, inits, strict=True)),
        streams=tuple(Stream(f"x{i}", tree.leaves[i], later) for i in streams),
        invariants=tuple(outside),
        steps=count - 1,
        reverse=False,
        span=span_of_scan(nodes[0]),
        nodes=tuple(nodes),
        uses=uses,
        proof=f"the tree of combinations was followed entry by entry: row t joins 0..t, for {count} entries",
    )
