"""A whole kernel as C++ text.

Takes a ``Kernel`` and an ``Isa``; leaves the source of one ``extern "C"`` function

    int kernel(char *const *P, const int64_t *S, const int64_t *N, int64_t steps, int threads)

with ``P`` one pointer per operand, ``S`` their strides in entries (time first where the
operand has it, then its axes), ``N`` the sizes of all axes in sorted order.  It returns 0,
or 1 when scratch memory ran out.  Names come from counters only.
"""

from __future__ import annotations

from tenfuse.emit.cpp import integers
from tenfuse.emit.cpp.backward import backward
from tenfuse.emit.cpp.entry import entry
from tenfuse.emit.cpp.forward import forward
from tenfuse.emit.cpp.isa import Isa
from tenfuse.emit.cpp.memory import Memory
from tenfuse.emit.cpp.operands import timed
from tenfuse.emit.cpp.preamble import preamble
from tenfuse.emit.cpp.settle import Settled, settle
from tenfuse.plan.kernel import Kernel
from tenfuse.step.program import compares
from tenfuse.step.whole import whole_nodes

FAR_BYTES = 8 << 20
"""Results that together take more than this are written past the cache, line by line:
they would drive out what the loop reads, and every line would be read before it is written."""
ROUNDED = """\
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif
"""
"""A product and a sum are two roundings wherever they are computed."""
SIGNATURE = (
    "static void run(char* const* P, const int64_t* S, const int64_t* N, const int64_t* L,\n"
    "                int64_t steps, int64_t task, T* arena, T* share"
)


def emit(kernel: Kernel, isa: Isa) -> str:
    """C++ source for ``kernel``."""
    whole = _whole(kernel)
    settled = settle(kernel, isa.narrow() if whole and kernel.compute == "f32" else isa)
    memory = Memory(settled)
    body = backward(memory) if settled.kernel.backward else forward(memory)
    # What the body asked for is defined before it; filling the packs asks for more pointers.
    common, packs = _common(memory), memory.packs.fill(common=False)
    task = [*_task(settled, memory), *packs, *body]
    return (
        (ROUNDED if compares(settled.kernel.program) else "")
        + preamble(settled.kernel.compute, settled.lanes)
        + (integers.head(settled.lanes) if whole else "")
        + common
        + SIGNATURE
        + (", T* common" if common else "")
        + (", T* own, int64_t turn) {\n" if memory.together else ") {\n")
        + "".join(f"  {line}\n" for line in task)
        + "}\n\n"
        + entry(memory)
    )


def _common(memory: Memory) -> str:
    """The function that fills the copies all tasks read, if there are any: every thread calls it."""
    lines = memory.packs.fill(common=True)
    if not lines:
        return ""
    heads = [*memory.operands.strides(), *_totals(memory), *memory.operands.heads("\n".join(lines))]
    body = "".join(f"  {line}\n" for line in (*heads, *memory.packs.common.lines(), *lines))
    return f"static void pack(char* const* P, const int64_t* S, const int64_t* N, T* common) {{\n{body}}}\n\n"


def _totals(memory: Memory) -> list[str]:
    return [f"const int64_t N{i} = N[{i}]; (void)N{i};" for i in range(len(memory.settled.spaces.axes))]


def _task(settled: Settled, memory: Memory) -> list[str]:
    """Strides and sizes, the entries of every axis that the task has, pointers and scratch."""
    return [
        *memory.operands.strides(),
        *_totals(memory),
        *_far(settled),
        *_offsets(memory),
        *memory.operands.heads(),
        *memory.shares.heads(),
        *memory.packs.common.lines(),
        *memory.arena.lines(),
        *(memory.held.lines() if memory.together else []),
    ]


def _offsets(memory: Memory) -> list[str]:
    """Where the task's part of each axis begins, and how long it is.

    Tasks that sum the same outputs have numbers that follow each other.
    """
    lines, spaces, cut = ["int64_t rest = task;"], memory.settled.spaces, memory.shares.cut
    others = [a for a in spaces.task_axes() if a not in cut]
    for axis in reversed([spaces.axes[a] for a in (*others, *cut)]):
        i = axis.id
        if axis.kind == "task":
            lines.append(f"const int64_t o{i} = rest % N{i}; rest /= N{i};")
            continue
        tile = axis.extent if isinstance(axis.extent, int) else f"L[{i}]"
        lines.append(
            f"const int64_t m{i} = (N{i} + {tile} - 1) / {tile}, o{i} = rest % m{i} * {tile}; rest /= m{i};"
        )
        if not isinstance(axis.extent, int):
            lines.append(f"const int64_t n{i} = N{i} - o{i} < {tile} ? N{i} - o{i} : {tile};")
    return lines


def _whole(kernel: Kernel) -> bool:
    """Whether the kernel has integers."""
    programs = (kernel.program, kernel.recompute)
    return any(whole_nodes(p) for p in programs if p is not None)


def _far(settled: Settled) -> list[str]:
    """Whether the per-step results are too large to stay in the cache, and whether they are with
    the saved states, which are read last of all."""
    kernel, sizes = settled.kernel, settled.spaces.axes
    entries: dict[str, list[str]] = {"out": ["0"], "save": ["wide"]}
    for o in kernel.operands:
        if o.role == "out" and timed(kernel, o):
            axes = kernel.program.outs[o.index].axes
            entries["out"].append(" * ".join(["steps", *(f"N{sizes[a].id}" for a in axes)]))
        elif o.role == "save" and not kernel.backward:
            many = f"(steps / {max(1, kernel.checkpoint)} + 1)"
            entries["save"].append(" * ".join([many, *(f"N{sizes[a].id}" for a in o.axes)]))
    limit = FAR_BYTES // (8 if kernel.compute == "f64" else 4)
    return [
        f"const int64_t wide = {' + '.join(entries['out'])}, all = {' + '.join(entries['save'])};",
        f"const bool far = wide > {limit}, away = all > {limit}; (void)far; (void)away;",
    ]


__all__ = ["emit", "timed"]
