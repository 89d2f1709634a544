"""When in a step each contraction is taken.

Takes a ``StepProgram`` and the local axes of its nodes; leaves the stage of each contraction:
after those it reads, and later where a sweep over the same axes is made anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenfuse.step.program import AxisName, Contract, Ref, StepProgram, arguments


def stages(program: StepProgram) -> list[int]:
    """How many contractions lie below each node."""
    found: list[int] = []
    for node in program.nodes:
        below = max((found[a] for a in arguments(node)), default=0)
        found.append(below + 1 if isinstance(node, Contract) else below)
    return found


def alive(program: StepProgram) -> set[Ref]:
    """The nodes that any result needs."""
    live = set(program.roots())
    for i in range(len(program.nodes) - 1, -1, -1):
        if i in live:
            live |= set(arguments(program.nodes[i]))
    return live


def turns(program: StepProgram, axes: Sequence[frozenset[AxisName]]) -> dict[Ref, int]:
    """At which stage each contraction is taken: its own, or a later one that sweeps the
    same axes anyway, if everything its own stage would sweep them for can wait."""
    below, live = stages(program), alive(program)
    turn = {i: below[n.arg] for i, n in enumerate(program.nodes) if isinstance(n, Contract) and i in live}
    groups: dict[tuple[int, frozenset[AxisName]], list[Ref]] = {}
    for r, s in turn.items():
        groups.setdefault((s, _space(program, axes, r)), []).append(r)
    needs = _needs(program, live)
    for (s, space), refs in sorted(groups.items(), key=lambda g: -g[0][0]):
        latest = min((turn[c] - 1 for r in refs for c in needs[r]), default=max(turn.values()))
        hosts = [t for (t, other), _ in groups.items() if other == space and s < t <= latest]
        if hosts and space:
            turn.update({r: min(hosts) for r in refs})
    return turn


def _space(program: StepProgram, axes: Sequence[frozenset[AxisName]], ref: Ref) -> frozenset[AxisName]:
    node = program.nodes[ref]
    assert isinstance(node, Contract)
    return axes[node.arg]


def _needs(program: StepProgram, live: set[Ref]) -> dict[Ref, set[Ref]]:
    """For each contraction, those whose argument it is part of."""
    found: dict[Ref, set[Ref]] = {}
    below: list[set[Ref]] = []
    for i, node in enumerate(program.nodes):
        mine = set().union(*(below[a] for a in arguments(node)))
        if isinstance(node, Contract) and i in live:
            found[i] = set()
            for r in mine:
                found[r].add(i)
            mine = {i}
        below.append(mine)
    return found


__all__ = ["alive", "stages", "turns"]
