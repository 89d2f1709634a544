"""The outer function of a kernel: how many tasks there are and which thread runs them.

Takes the ``Memory`` of a kernel whose task is written; leaves the text of

    int kernel(char *const *P, const int64_t *S, const int64_t *N, int64_t steps, int threads)

which divides the axes, gives every thread an arena and its shares, runs the tasks and sums
the shares.  Tasks that walk together, all that sum the same outputs, take turns on a thread.
"""

from __future__ import annotations

from tenfuse.emit.cpp.memory import Memory
from tenfuse.emit.cpp.spaces import Axis
from tenfuse.step.program import AxisName


def entry(memory: Memory) -> str:
    shared = bool(memory.shares.order)
    lines = [*_tasks(memory, shared), *_sizes(memory, shared)]
    return "\n".join(
        [
            'extern "C" int kernel(char* const* P, const int64_t* S, const int64_t* N,',
            "                      int64_t steps, int threads) {",
            *(f"  {line}" for line in lines),
            *(f"  {line}" for line in _common(memory)),
            "  #pragma omp parallel num_threads(threads) if (threads > 1)",
            "  {",
            *(["    pack(P, S, N, common);"] if memory.packs.common.arrays else []),
            "    void* memory = 0;",
            "    if (posix_memalign(&memory, 64, (size_t)need * sizeof(T)) != 0) {",
            "      #pragma omp atomic write",
            "      failed = 1;",
            "      memory = 0;",
            "    }",
            *(f"    {line}" for line in (_turns(memory) if memory.together else _each(memory, shared))),
            "    settle();",
            *(f"    {line}" for line in memory.shares.gather()),
            "    free(memory);",
            "  }",
            *(["  free(common);"] if memory.packs.common.arrays else []),
            *(["  free(shares);"] if shared else []),
            "  return failed;",
            "}",
            "",
        ]
    )


def _common(memory: Memory) -> list[str]:
    """Lines that take the memory of the copies that all tasks read."""
    if not memory.packs.common.arrays:
        return []
    failed = "free(shares); return 1;" if memory.shares.order else "return 1;"
    size = f"(size_t)({memory.packs.common.need()} + W) * sizeof(T)"
    return ["T* common = 0;", f"if (posix_memalign((void**)&common, 64, {size}) != 0) {{ {failed} }}"]


def _each(memory: Memory, shared: bool) -> list[str]:
    """Lines that run one task after the other."""
    # Shares are summed thread by thread: equal chunks keep the result the same at every call.
    schedule = "static" if shared else "dynamic, 1"
    share = "shares + omp_get_thread_num() * total" if shared else "0"
    share += ", common" if memory.packs.common.arrays else ""
    return [
        f"#pragma omp for schedule({schedule})",
        "for (int64_t task = 0; task < tasks; task++)",
        f"  if (memory) run(P, S, N, L, steps, task, (T*)memory, {share});",
    ]


def _turns(memory: Memory) -> list[str]:
    """Lines that give every thread a run of tasks, in which tasks of one group take turns."""
    chunk = max(1, memory.settled.kernel.checkpoint)
    common = ", common" if memory.packs.common.arrays else ""
    return [
        "#pragma omp for schedule(static)",
        "for (int64_t w = 0; w < threads; w++) {",
        "  const int64_t end = tasks * (w + 1) / threads;",
        "  for (int64_t from = tasks * w / threads, to; memory && from < end; from = to) {",
        "    to = (from / group + 1) * group < end ? (from / group + 1) * group : end;",
        f"    for (int64_t turn = (steps + {chunk - 1}) / {chunk}; turn >= -1; turn--)",
        "      for (int64_t task = from; task < to; task++)",
        f"        run(P, S, N, L, steps, task, (T*)memory, shares + w * total{common},",
        "            (T*)memory + room + (task - from) * each, turn);",
        "  }",
        "}",
    ]


def _tasks(memory: Memory, shared: bool) -> list[str]:
    """Lines that count the tasks, and settle how long the runs are that are cut at launch."""
    spaces = memory.settled.spaces
    lines = [f"const int64_t N{i} = N[{i}]; (void)N{i};" for i in range(len(spaces.axes))]
    lines.append(f"int64_t L[{len(spaces.axes) + 1}] = {{0}};")
    lines.append("int64_t tasks = 1;")
    tiles: list[tuple[AxisName, Axis]] = []
    for a in spaces.task_axes():
        axis = spaces.axes[a]
        if axis.kind == "task":
            lines.append(f"tasks *= N{axis.id};")
        elif isinstance(axis.extent, int):
            lines.append(f"tasks *= (N{axis.id} + {axis.extent - 1}) / {axis.extent};")
        else:
            tiles.append((a, axis))
    # With shares there is something to do without tasks: the sum of nothing is zero.
    early = [] if shared else ["if (tasks == 0) return 0;"]
    lines += early
    if tiles:
        lines += ["if (tasks > 0) {"]
        for a, axis in sorted(tiles, key=lambda t: t[0] == spaces.row):
            few = a == spaces.row and (spaces.shared or shared)
            lines += _tile(memory.settled.lanes, axis, "threads" if few else "4 * threads", a == spaces.row)
        lines += ["}"]
    return lines + (early if tiles else [])


def _tile(lanes: int, axis: Axis, parts: str, row: bool) -> list[str]:
    """The run of a tile axis that one task takes, chosen at launch for ``parts`` tasks.

    One per thread where rows share loads, or where every task adds to what others sum too:
    all tasks are then as long, and each repeats what does not depend on its rows.  Where no
    task can hold that many, tasks are as many times more, long ones in whole vectors.
    """
    i, grain = axis.id, 1 if row else 4 * lanes
    even = [
        f"  const int64_t least = (N{i} + {axis.capacity} - 1) / {axis.capacity};",
        "  if (want < least) want = (least + want - 1) / want * want;",
    ]
    whole = [f"  if (tile > {2 * lanes}) tile = (tile + {lanes - 1}) / {lanes} * {lanes};"]
    long = isinstance(axis.capacity, int) and axis.capacity >= 2 * lanes
    return [
        f"{{ int64_t want = ({parts} + tasks - 1) / tasks;",
        *(even if long else []),
        f"  int64_t tile = ((N{i} + want - 1) / want + {grain - 1}) / {grain} * {grain};",
        *(whole if long and row else []),
        f"  if (tile > {axis.capacity}) tile = {axis.capacity};",
        "  if (tile < 1) tile = 1;",
        f"  L[{i}] = tile; tasks *= (N{i} + tile - 1) / tile; }}",
    ]


def _room(memory: Memory) -> list[str]:
    """Lines that count the entries of a thread's scratch, ``need``."""
    if not memory.together:
        return [f"const int64_t need = {memory.arena.need()} + W;"]
    counts = [_count(memory.settled.spaces.axes[a]) for a in memory.shares.cut]
    # Half a page apart in their pages: a row stored is not taken for the next row read.
    return [
        f"const int64_t group = tasks > 0 ? {' * '.join(counts)} : 1, page = 4096 / sizeof(T);",
        f"const int64_t room = ({memory.arena.need()} + W + page - 1) / page * page + page / 2;",
        f"const int64_t each = ({memory.held.need()} + W - 1) / W * W, need = room + group * each;",
    ]


def _count(axis: Axis) -> str:
    """How many tasks an axis is cut into."""
    if axis.kind == "task":
        return f"N{axis.id}"
    tile = axis.extent if isinstance(axis.extent, int) else f"L[{axis.id}]"
    return f"((N{axis.id} + {tile} - 1) / {tile})"


def _sizes(memory: Memory, shared: bool) -> list[str]:
    """Lines that settle the number of threads and what memory they need."""
    lines = [
        *_room(memory),
        f"if ((double)tasks * (double)(steps + 1) * {max(1, memory.work)}.0 < 20000.0) threads = 1;",
        "if (threads > tasks) threads = tasks > 0 ? (int)tasks : 1;",
        "int failed = 0;",
    ]
    if not shared:
        return lines
    strides, total = memory.shares.strides()
    return [
        *lines,
        *strides,
        f"const int64_t total = {total} + W;",
        "T* const shares = (T*)calloc((size_t)threads * (size_t)total, sizeof(T));",
        "if (!shares) return 1;",
    ]


__all__ = ["entry"]
