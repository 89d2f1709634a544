"""Which scans of a step run together, and which way the positions of a tile lie.

Takes a step program; leaves groups of scans that multiply by the same decay, and the axes
whose positions stand in a tile from last to first.  One scan carries all values of a
group, and the products of its decays as well; a scan that runs the way a tile lies turns
nothing round.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenfuse.step.program import (
    AxisName,
    Const,
    Input,
    Pointwise,
    Position,
    Ref,
    Rename,
    Scan,
    Solve,
    StepProgram,
    arguments,
)

TOGETHER = 3
"""Values of one scan at most: all of them are in registers at once."""


def together(program: StepProgram) -> dict[Ref, tuple[Ref, ...]]:
    """For every scan those that may run with it, itself among them: none reads another's result."""
    found: dict[Ref, tuple[Ref, ...]] = {}
    groups: list[list[Ref]] = []
    behind = _reaches(program)
    for i, node in enumerate(program.nodes):
        if not isinstance(node, Scan):
            continue
        for group in groups:
            if len(group) < TOGETHER and _alike(program, group[0], i) and not behind[i] & set(group):
                group.append(i)
                break
        else:
            groups.append([i])
    for group in groups:
        found |= dict.fromkeys(group, tuple(group))
    return found


def _reaches(program: StepProgram) -> list[set[Ref]]:
    """The scans that every node reads, directly or not."""
    found: list[set[Ref]] = []
    for i, node in enumerate(program.nodes):
        own = {i} if isinstance(node, Scan) else set()
        found.append(own.union(*(found[a] for a in arguments(node))))
    return found


def _alike(program: StepProgram, first: Ref, second: Ref) -> bool:
    a, b = program.nodes[first], program.nodes[second]
    assert isinstance(a, Scan) and isinstance(b, Scan)
    same = (a.decay, a.axis, a.reverse, a.semiring) == (b.decay, b.axis, b.reverse, b.semiring)
    axes = program.axes_of()
    return same and a.semiring == "sum-product" and not a.rows and not b.rows and axes[first] == axes[second]


def is_product(program: StepProgram, node: Scan) -> bool:
    """Whether a scan only multiplies its decays: its argument is the first decay, and zero behind."""
    arg = program.nodes[node.arg]
    if node.semiring != "sum-product" or node.rows:
        return False
    if not isinstance(arg, Pointwise) or arg.fn != "where" or arg.args[1] != node.decay:
        return False
    chosen, other = program.nodes[arg.args[0]], program.nodes[arg.args[2]]
    if other != Const(0.0) or not isinstance(chosen, Pointwise) or chosen.fn != "eq":
        return False
    first = float(program.sizes[node.axis] - 1 if node.reverse else 0)
    at = [program.nodes[a] for a in chosen.args]
    return at in ([Position(node.axis), Const(first)], [Const(first), Position(node.axis)])


def mirrored(program: StepProgram, whole: frozenset[AxisName]) -> frozenset[AxisName]:
    """Of the axes that a tile has ``whole`` those along which more scans run backwards than forwards.

    Axes that values are renamed between lie the same way; those of systems and of carries do not turn.
    """
    ways: dict[AxisName, int] = {}
    for group in set(together(program).values()):
        node = program.nodes[group[0]]
        assert isinstance(node, Scan)
        ways[node.axis] = ways.get(node.axis, 0) + (1 if node.reverse else -1)
    fixed = {a for n in program.nodes if isinstance(n, (Scan, Solve)) for a in (*n.rows, *n.cols)}
    fixed |= {a for n in program.nodes if isinstance(n, Input) and n.kind == "carry" for a in n.axes}
    fixed |= {a for c in program.carries for a in (*c.axes, *c.next_axes)}
    return frozenset(
        a for names in renamed_together(program) for a in names
        if names <= whole and not names & fixed and sum(ways.get(n, 0) for n in names) > 0
    )  # fmt: skip


def renamed_together(program: StepProgram) -> Iterator[set[AxisName]]:
    """Axes in groups: values are renamed between those of one."""
    groups: list[set[AxisName]] = [{a} for a in program.sizes]
    for node in program.nodes:
        for pair in node.names if isinstance(node, Rename) else ():
            joined = set(pair).union(*(g for g in groups if g & set(pair)))
            groups = [g for g in groups if not g & set(pair)] + [joined]
    yield from groups


__all__ = ["is_product", "mirrored", "renamed_together", "together"]
