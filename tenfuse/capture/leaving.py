"""What the steps leave: values read after the loop, and buffers they filled.

Takes the ``Inputs`` of a segment, to which it adds carries that no step reads and numbers that are
written; leaves the loop's outputs (``Results``), or raises ``Refused`` with the user's line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch.fx as fx

from tenfuse import reasons
from tenfuse.capture import families, views
from tenfuse.capture.body import Ref
from tenfuse.capture.entering import Inputs
from tenfuse.capture.families import Box, Family
from tenfuse.capture.loop import Final, Stacked, ViewOp
from tenfuse.capture.views import basic_index, is_tensor, value_of
from tenfuse.reasons import refuse, where


@dataclasses.dataclass(frozen=True)
class Results:
    uses: dict[fx.Node, Final | Stacked]
    """Nodes of the loop read after it."""
    ys: list[int]
    """Body positions whose value at every step is wanted."""
    writes: list[tuple[fx.Node, fx.Node, int, Family]]
    """Buffers filled: what they were, the last node naming them, which of ``ys``, and where."""


class _Finder:
    def __init__(self, of: Inputs) -> None:
        self.of = of

    def find(self) -> Results:
        uses, ys = self._escapes()
        return Results(uses, ys, self._writes(ys))

    def _escapes(self) -> tuple[dict[fx.Node, Final | Stacked], list[int]]:
        """Values used after the loop; ``ys`` are body positions, in order."""
        outside: dict[int, list[int]] = {}
        for run in range(self.of.runs):
            for j in range(self.of.period):
                node = self.of.node(run, j)
                if node in self.of.region and any(u not in self.of.region for u in node.users):
                    outside.setdefault(j, []).append(run)
        for j in self._mutated():
            outside.setdefault(j, [])
            if self.of.runs - 1 not in outside[j]:
                outside[j].append(self.of.runs - 1)
        uses: dict[fx.Node, Final | Stacked] = {}
        ys: list[int] = []
        for j, runs in sorted(outside.items()):
            if j in self.of.buffers:
                if runs != [self.of.runs - 1] or j != self.of.chains[self.of.buffers[j]][1][-1]:
                    raise self.of.refuse(
                        reasons.BUFFER_READ, "a half-filled buffer is read after the loop", j
                    )
                continue
            if j in self.of.fixed or (
                self.of.value[j].kind == "stream" and j not in self.of.calls and self._is_slice(j)
            ):
                continue
            if not is_tensor(self.of.node(0, j)):
                raise self.of.refuse(reasons.CARRY_CHANGES, "a value read after the loop is not a tensor", j)
            if runs == [self.of.runs - 1]:
                uses[self.of.node(runs[0], j)] = Final(self._final(j))
                continue
            ys.append(j)
            for run in runs:
                uses[self.of.node(run, j)] = Stacked(len(ys) - 1, run)
        return uses, ys

    def _is_slice(self, j: int) -> bool:
        return basic_index(self.of.node(0, j)) is not None

    def _final(self, j: int) -> int:
        for i, (position, _, before) in enumerate(self.of.carries):
            if position == j and before is None:
                return i
        self.of.carries.append((j, None, None))
        return len(self.of.carries) - 1

    def _mutated(self) -> Iterator[int]:
        """Last versions of tensors from before the loop that the loop changes in place."""
        record = self.of.record
        for root, versions in record.versions.items():
            inside = [(at, v) for at, v in versions if v in self.of.region]
            if not inside:
                continue
            at, last = inside[-1]
            if versions[0][1] in self.of.region:
                self._check_aliases(root, at)
                continue
            run, j = divmod(self.of.seq.position[last] - self.of.start, self.of.period)
            if run != self.of.runs - 1:
                raise self.of.refuse(
                    reasons.ALIASED_WRITE, "a tensor is written in place by some steps only", j
                )
            yield j

    def _check_aliases(self, root: fx.Node, at: float) -> None:
        """A tensor made inside the loop and written after it may leave under one name only."""
        record = self.of.record
        end = max(record.order[record.origin[n]] for n in self.of.region if n in record.origin)
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
        for init, chain in self.of.chains:
            boxes = []
            for j in chain:
                every = [self.of.node(r, j).args[2] for r in range(self.of.runs)]
                moved, own = self._write_family(init, j, [v.ops for v in every])  # type: ignore[union-attr]
                boxes.append(own)
                y = self._written_value(j)
                if y not in ys:
                    ys.append(y)
                found.append((init, self.of.node(self.of.runs - 1, chain[-1]), ys.index(y), moved))
            if len(chain) > 1 and not _order_free(boxes):
                raise self.of.refuse(reasons.ALIASED_WRITE, "writes of different steps overlap", chain[0])
        return found

    def _written_value(self, j: int) -> int:
        """The body position whose value is written; made up for a plain number."""
        value = self.of.node(0, j).args[1]
        if isinstance(value, fx.Node):
            kind, what = self.of.slot(j, 1)
            if kind == "same" and self.of.value[what] == Ref("node", what):
                return int(what)
            self.of.value[j] = self.of.operand(j, (kind, what))
            return j
        seen = families.apply(value_of(self.of.node(0, j)), self.of.node(0, j).args[2].ops)  # type: ignore[union-attr]
        if isinstance(value, (int, float)) and all(views.static(s) is not None for s in seen.shape):
            if any(self.of.node(r, j).args[1] != value for r in range(self.of.runs)):
                raise self.of.refuse(reasons.NOT_AFFINE, "another number is written at each step", j)
            self.of.value[j] = Ref("constant", j)
            return j
        raise self.of.refuse(reasons.ALIASED_WRITE, "a number is written through a view", j)

    def _write_family(
        self, init: fx.Node, j: int, runs: list[tuple[ViewOp, ...]]
    ) -> tuple[Family, list[Box]]:
        base = value_of(init)
        moved = families.family_of_ops(base, runs)
        if moved is None or not families.apart(moved, base):
            raise self.of.refuse(reasons.NOT_AFFINE, "the slices written do not move evenly, or overlap", j)
        return moved, [families.box_of_ops(base, ops) for ops in runs]


def _order_free(chain: list[list[Box]]) -> bool:
    """Whether writing family by family leaves the same contents as writing step by step."""
    for i, later in enumerate(chain):
        for earlier in chain[i + 1 :]:
            # in the loop, `later` at a later step overwrites `earlier` of this step
            if families.overlaps_after(earlier, later):
                return False
    return True


def results(of: Inputs) -> Results:
    """What leaves the loop whose operands are ``of``."""
    return _Finder(of).find()
