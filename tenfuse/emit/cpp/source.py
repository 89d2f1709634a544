"""A whole kernel as C++ text.

Takes a ``Kernel`` and an ``Isa``; leaves the source of one ``extern "C"`` function

    int kernel(char *const *P, const int64_t *S, const int64_t *N, int64_t steps, int threads)

with ``P`` one pointer per operand, ``S`` their strides in entries (time first where the
operand has it, then its axes), ``N`` the sizes of all axes in sorted order.  It returns 0,
or 1 when scratch memory ran out.  Names come from counters only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from tenfuse.emit.cpp.isa import Isa
from tenfuse.emit.cpp.nest import Access, NestWriter
from tenfuse.emit.cpp.preamble import STORAGE, cost, preamble
from tenfuse.emit.cpp.retime import COSTLY, Early, early, repeated, shared, untimed
from tenfuse.emit.cpp.schedule import Nest, Scheduler, Store, reads_carry
from tenfuse.emit.cpp.simplify import simplify
from tenfuse.emit.cpp.spaces import Axis, choose, partial_sums
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.step.program import AxisName, CarrySpec, Input, OutSpec, Pointwise, Ref, StepProgram

Size = int | str
ITEM = {"f32": 4, "f64": 8, "bf16": 2, "f16": 2, "bool": 1}
TIMED = ("stream", "save")
PANEL_BYTES = 8 << 10
"""Invariants smaller than this stay in the first-level cache in any layout."""
FAR_BYTES = 8 << 20
"""Results that together take more than this are written past the cache, line by line:
they would drive out what the loop reads, and every line would be read before it is written."""
AHEAD = 2048
"""Vector operations between asking for a stream's entries and reading them: about the time
that memory takes to answer."""
FURTHEST = 16
"""Steps that a stream is asked for ahead, at most."""
LINE = 64


def timed(kernel: Kernel, operand: Operand) -> bool:
    """Whether the operand's first stride is that of time (or of chunks)."""
    if operand.role == "out":
        return not kernel.program.outs[operand.index].accumulate
    return operand.role in TIMED


def times(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else f"({a} * {b})"


@dataclasses.dataclass(frozen=True)
class Array:
    """Scratch of one task: ``places`` are the positions that have an extent, the unit one last."""

    name: str
    places: tuple[int, ...]
    strides: tuple[Size, ...]
    size: Size

    def access(self, axes: tuple[AxisName, ...], pointer: str = "") -> Access:
        dims = tuple((axes[p], str(s)) for p, s in zip(self.places, self.strides, strict=True))
        return Access(pointer or self.name, dims, padded=True)

    def panels(self, axes: tuple[AxisName, ...], x: AxisName, block: int) -> Access:
        """The same memory with ``x`` cut in blocks of ``block`` entries, outermost."""
        pitch = int(self.strides[-2]) if len(self.strides) > 1 else block
        dims = []
        for p, s in zip(self.places, self.strides, strict=True):
            dims.append((axes[p], "1" if axes[p] == x else str(int(s) // pitch * block)))
        return Access(self.name, tuple(dims), padded=True, panel=str(int(self.size) // pitch))


class KernelWriter:
    """Collects pointers, scratch and nests, then lays out the text."""

    def __init__(self, kernel: Kernel, isa: Isa) -> None:
        self.isa, self.lanes = isa, isa.lanes(kernel.compute)
        again = simplify(kernel.recompute) if kernel.recompute else None
        kernel = dataclasses.replace(kernel, program=simplify(kernel.program), recompute=again)
        self._choose(kernel)
        self.arrays: list[tuple[Array, int]] = []
        self.pointers: dict[tuple[int, tuple[AxisName, ...]], int] = {}
        self.packs: dict[tuple[int, tuple[AxisName, ...], AxisName | None, int], Array] = {}
        self.work = 0
        self.leads = False
        self.shares = self._shares()
        self.shared_order: dict[int, tuple[int, ...]] = {}

    def _choose(self, kernel: Kernel) -> None:
        """Settle programs and layouts: contractions are taken a step early where that saves sweeps."""
        options: list[tuple[Early, Early | None]] = []
        plain = untimed(kernel.recompute) if kernel.recompute else None
        agains = [plain]
        if kernel.recompute:
            kept = repeated(kernel.recompute, kernel.program)
            agains += [early(kernel.recompute)] + ([early(kernel.recompute, kept)] if kept else [])
        for again in agains:
            reading = shared(kernel.program, again) if again else kernel.program
            options += [(untimed(reading), again)] if again is plain or (again and again.first) else []
            options += [(main, again)] if (main := early(reading)).first else []
        best = None
        for main, again in options:
            second = again.program if again else None
            self.kernel = dataclasses.replace(kernel, program=main.program, recompute=second)
            self.spaces, self.last, self.state_last = choose(self.kernel, self.isa)
            swept = self._swept(self.kernel.program, self.last)
            swept += self._swept(again.program, self.state_last) if again else 0
            if best is None or swept < best[0]:
                best = (swept, self.kernel, self.spaces, self.last, self.state_last, main, again)
        assert best is not None
        _, self.kernel, self.spaces, self.last, self.state_last, self.main, self.again = best

    def _swept(self, program: StepProgram, last: dict[int, int]) -> int:
        """Vector iterations of all nests of one step, those with costly functions counted more."""
        scheduler = Scheduler(self.kernel, program, self.spaces, self.isa, last, self.state_last)
        total = 0
        for nest in scheduler.run():
            nodes = [program.nodes[r] for r in scheduler.computed(nest) - nest.kept]
            costs = [cost(n.fn) for n in nodes if isinstance(n, Pointwise)]
            total += self._volume(nest) * (1 + sum(c for c in costs if c >= COSTLY) // 5)
        return total

    def _shares(self) -> frozenset[int]:
        """Outputs of which each task computes a share: they are summed over threads."""
        program, found = self.kernel.program, set()
        for a in self.spaces.task_axes():
            share = partial_sums(program, a) or frozenset()
            found |= {i for i, o in enumerate(program.outs) if o.ref in share}
        return frozenset(found)

    # -- scratch and operands -----------------------------------------------------------

    def array(self, axes: tuple[AxisName, ...], last: int | None, copies: int = 1, grain: int = 1) -> Array:
        """Scratch over the local axes among ``axes``; ``last`` is the position with stride 1,
        its extent rounded up to whole vectors and to ``grain``."""
        places = [p for p, a in enumerate(axes) if self.spaces.axes[a].kind != "task"]
        if last in places:
            places.remove(last)  # type: ignore[arg-type]
            places.append(last)  # type: ignore[arg-type]
        size: Size = 1
        strides: list[Size] = []
        for n, p in enumerate(reversed(places)):
            strides.append(size)
            extent = self.spaces.axes[axes[p]].capacity
            if n == 0:
                extent = self._padded(-(-extent // grain) * grain if isinstance(extent, int) else extent)
            size = times(size, extent)
        size = self._padded(size) if not places else size
        found = Array(f"w{len(self.arrays)}", tuple(places), tuple(reversed(strides)), size)
        self.arrays.append((found, copies))
        return found

    def _padded(self, extent: Size) -> Size:
        if isinstance(extent, int):
            return -(-max(extent, 1) // self.lanes) * self.lanes
        return f"(({extent} + {self.lanes}) / {self.lanes} * {self.lanes})"

    def operand(self, role: str, index: int) -> int | None:
        for i, o in enumerate(self.kernel.operands):
            if o.role == role and o.index == index:
                return i
        return None

    def outside(self, role: str, index: int, axes: tuple[AxisName, ...]) -> Access:
        """An operand, its dimensions read under the names ``axes``."""
        place = self.operand(role, index)
        assert place is not None, f"the kernel has no operand for {role} {index}"
        operand = self.kernel.operands[place]
        assert len(axes) == len(operand.axes)
        number = self.pointers.setdefault((place, axes), len(self.pointers))
        letter = "q" if timed(self.kernel, operand) else "p"
        first = 1 if timed(self.kernel, operand) else 0
        dims = []
        for p, a in enumerate(axes):
            if self.spaces.axes[a].kind == "task":
                continue
            unit = operand.unit is not None and operand.axes[p] == operand.unit
            dims.append((a, "1" if unit else f"s{place}_{p + first}"))
        far = role == "out" and timed(self.kernel, operand)
        return Access(f"{letter}{number}", tuple(dims), far=far)

    def share(self, index: int, x: AxisName | None) -> Access:
        """This thread's share of an output: contiguous, time first, axis ``x`` last."""
        axes = self.kernel.program.outs[index].axes
        if index not in self.shared_order:
            self.shared_order[index] = tuple(sorted(range(len(axes)), key=lambda p: axes[p] == x))
        last = self.shared_order[index][-1] if axes else None
        dims = tuple(
            (a, "1" if p == last else f"e{index}_{p}")
            for p, a in enumerate(axes)
            if self.spaces.axes[a].kind != "task"
        )
        accumulate = self.kernel.program.outs[index].accumulate
        return Access(f"{'u' if accumulate else 'y'}{index}", dims)

    def constant(self, index: int, axes: tuple[AxisName, ...], nest: Nest) -> Access:
        """An invariant: read where it lies if that suits, else from a packed copy."""
        x = nest.x
        place = self.operand("constant", index)
        assert place is not None, f"the kernel has no operand for invariant {index}"
        operand = self.kernel.operands[place]
        local = self.spaces.local(axes)
        unit = axes[operand.axes.index(operand.unit)] if operand.unit in operand.axes else None
        if not local:
            return self.outside("constant", index, axes)
        panel = self._panel(local, nest)
        key: tuple[int, tuple[AxisName, ...], AxisName | None, int] = (index, axes, x, panel)
        if panel and x is not None:
            if key not in self.packs:
                self.packs[key] = self.array(axes, axes.index(x), grain=panel)
            return self.packs[key].panels(axes, x, panel)
        same = operand.dtype == self.kernel.compute
        if x not in local:
            if same:
                return self.outside("constant", index, axes)
            x = None
        elif unit == x and same:
            extent = self.spaces.axes[str(x)].extent
            if not isinstance(extent, int) or extent % self.lanes == 0:
                return self.outside("constant", index, axes)
        key = (index, axes, x, 0)
        if key not in self.packs:
            self.packs[key] = self.array(axes, axes.index(x) if x in axes else None)
        return self.packs[key].access(axes)

    def _panel(self, local: frozenset[AxisName], nest: Nest) -> int:
        """Entries per block if a constant should be packed in blocks for this nest, else 0."""
        x = nest.x
        extents = [self.spaces.axes[a].extent for a in local]
        if x not in local or not nest.reductions or not all(isinstance(e, int) for e in extents):
            return 0
        block = nest.unroll.get(str(x), 1) * self.lanes
        volume = math.prod(int(e) for e in extents)
        whole = int(self.spaces.axes[str(x)].extent)
        return block if len(local) > 1 and whole > block and volume * 4 >= PANEL_BYTES else 0

    # -- steps --------------------------------------------------------------------------

    def copy(
        self, axes: tuple[AxisName, ...], source: Access, target: Access, unroll: int = 0, add: bool = False
    ) -> list[str]:
        """Lines that copy one tensor of a task, or add it to what is there."""
        program = StepProgram((Input("carry", 0, axes),), self.sizes(), (CarrySpec(axes, 0, axes),), ())
        kernel = dataclasses.replace(self.kernel, program=program, recompute=None, operands=())
        scheduler = Scheduler(kernel, program, self.spaces, self.isa, {}, {})
        local = self.spaces.local(axes)
        units = [a for a, s in target.dims if s == "1"] or [a for a, s in source.dims if s == "1"]
        both = [a for a, s in source.dims if s == "1" and (a, "1") in target.dims]
        x = (both + units)[0] if units else None
        order = sorted(local - {x}, key=lambda a: self.spaces.axes[a].id) + ([x] if x else [])
        nest = Nest(
            order,
            x,
            {x: unroll} if x and unroll else {},
            [],
            [Store(0, local, ("sum" if add else "copy", 0))],
        )
        return NestWriter(scheduler, nest, lambda r: source, lambda s: target).text()

    def sizes(self) -> dict[AxisName, int]:
        second = self.kernel.recompute.sizes if self.kernel.recompute else {}
        return {**second, **self.kernel.program.sizes}

    def nests(
        self,
        program: StepProgram,
        last: dict[int, int],
        old: Callable[[int], Access | None],
        new: Callable[[int, tuple[AxisName, ...], bool], Access],
        sums: dict[int, Array],
        states: dict[int, int] | None = None,
    ) -> tuple[list[str], dict[int, bool]]:
        """The lines of one step; and which carries may be updated in place."""
        positions = self.state_last if states is None else states
        scheduler = Scheduler(self.kernel, program, self.spaces, self.isa, last, positions)
        nests = scheduler.run()
        inplace = {i: self._in_place(program, scheduler, nests, i) for i in range(len(program.carries))}
        scratch: dict[Ref, Array] = {}
        lines: list[str] = []
        names = program.nodes
        axes = {r: tuple(sorted(scheduler.axes[r])) for r in range(len(names))}

        def hold(ref: Ref, x: AxisName | None) -> Access:
            if ref not in scratch:
                scratch[ref] = self.array(axes[ref], axes[ref].index(x) if x in axes[ref] else None)
            return scratch[ref].access(axes[ref])

        for nest in nests:
            x = nest.x

            def read(ref: Ref, nest: Nest = nest, x: AxisName | None = x) -> Access:
                node = names[ref]
                if ref in nest.kept or not isinstance(node, Input):
                    return hold(ref, x)
                if node.kind == "invariant":
                    return self.constant(node.index, node.axes, nest)
                if node.kind in ("stream", "ahead"):
                    slice_ = self._streamed(node, x)
                    if node.kind == "ahead":
                        return dataclasses.replace(slice_, pointer=f"a{slice_.pointer[1:]}")
                    return slice_
                found = old(ref)
                assert found is not None
                return found

            def write(store: Store, x: AxisName | None = x) -> Access:
                kind, index = store.target
                if kind == "scratch":
                    return hold(index, x)
                if kind == "carry":
                    return new(index, program.carries[index].next_axes, inplace[index])
                if kind == "out":
                    if index in self.shares and program is self.kernel.program:
                        return self.share(index, x)
                    return self.outside("out", index, program.outs[index].axes)
                out = program.outs[index].axes
                if index not in sums:
                    sums[index] = self.array(out, out.index(x) if x in out else None)
                return sums[index].access(out)

            adds = {("out", i) for i in self.shares} if program is self.kernel.program else set()
            lines += NestWriter(scheduler, nest, read, write, frozenset(adds)).text()
            self.work += self._volume(nest)
        return lines, inplace

    def _streamed(self, node: Input, x: AxisName | None) -> Access:
        """A stream; where a task reads a few rows of it, far apart in memory, each vector is
        asked for some steps before it is read.  So are long runs of it when time is walked
        back, which the hardware foresees less well."""
        found = self.outside("stream", node.index, node.axes)
        runs = self.spaces.row in node.axes or self.kernel.backward
        settled = all(isinstance(self.spaces.axes[a].extent, int) for a in node.axes)
        if not self.leads or not runs or settled or (x, "1") not in found.dims:
            return found
        place = self.operand("stream", node.index)
        return dataclasses.replace(found, later=f"(int64_t)sizeof(*{found.pointer}) * lead * s{place}_0")

    def _volume(self, nest: Nest) -> int:
        total = 1
        for a in nest.order:
            axis = self.spaces.axes[a]
            total *= max(1, min(axis.trips, axis.capacity) if isinstance(axis.capacity, int) else axis.trips)
        return max(1, total // (self.lanes if nest.x else 1))

    def _in_place(self, program: StepProgram, scheduler: Scheduler, nests: list[Nest], index: int) -> bool:
        """Whether nothing reads the old carry after, or elsewhere while, the new one is written."""
        spec = program.carries[index]
        written = next(j for j, n in enumerate(nests) if any(s.target == ("carry", index) for s in n.stores))
        for j, nest in enumerate(nests):
            found = reads_carry(program, scheduler.computed(nest) - nest.kept, index)
            if found and j > written:
                return False
            if j == written and any(axes != spec.next_axes for axes in found):
                return False
        return True

    # -- the task -----------------------------------------------------------------------

    def text(self) -> str:
        body = self._backward() if self.kernel.backward else self._forward()
        packs = [self._pack(*key, array) for key, array in list(self.packs.items())]
        head = self._strides() + self._pointers() + self._share_heads() + self._scratch()
        task = head + [line for pack in packs for line in pack] + body
        return (
            preamble(self.kernel.compute, self.lanes)
            + self._signature()
            + " {\n"
            + "".join(f"  {line}\n" for line in task)
            + "}\n\n"
            + self._entry()
        )

    def _pack(
        self, index: int, axes: tuple[AxisName, ...], x: AxisName | None, panel: int, array: Array
    ) -> list[str]:
        """Lines that fill the packed copy of an invariant."""
        target = array.panels(axes, x, panel) if panel and x else array.access(axes)
        return self.copy(axes, self.outside("constant", index, axes), target, panel // self.lanes)

    def _carries(self) -> tuple[list[Array], list[str]]:
        """Arrays of the program's carries and the lines that fill them."""
        arrays, lines = [], []
        for i, carry in enumerate(self.kernel.program.carries):
            arrays.append(self.array(carry.axes, self.last.get(i)))
            lines.append(f"T* c{i} = {arrays[i].name};")
            if self.operand("init", i) is None:
                lines.append(f"memset(c{i}, 0, sizeof(T) * {arrays[i].size});")
            else:
                lines += self.copy(
                    carry.axes, self.outside("init", i, carry.axes), arrays[i].access(carry.axes, f"c{i}")
                )
        return arrays, lines

    def _program_step(
        self, arrays: list[Array], states: Callable[[int], Access] | None, sums: dict[int, Array]
    ) -> tuple[list[str], list[str]]:
        """Lines before the loop, and of one step of the kernel's program."""
        program = self.kernel.program

        def old(ref: Ref) -> Access:
            node = program.nodes[ref]
            assert isinstance(node, Input)
            if node.kind == "state":
                assert states is not None
                return states(ref)
            return arrays[node.index].access(node.axes, f"c{node.index}")

        def new(i: int, axes: tuple[AxisName, ...], inplace: bool) -> Access:
            return arrays[i].access(axes, f"c{i}" if inplace else f"d{i}")

        lines, inplace = self.nests(program, self.last, old, new, sums)
        before = []
        for i, fine in inplace.items():
            if not fine:
                copy = self.array(program.carries[i].axes, self.last.get(i))
                before.append(f"T* d{i} = {copy.name};")
                lines.append(f"{{ T* e = c{i}; c{i} = d{i}; d{i} = e; }}")
        for array in sums.values():
            before.append(f"memset({array.name}, 0, sizeof(T) * {array.size});")
        return before, lines

    def _finish(self, arrays: list[Array], sums: dict[int, Array]) -> list[str]:
        """Copy final carries and summed outputs to their tensors."""
        lines = []
        for i, carry in enumerate(self.kernel.program.carries):
            if self.operand("final", i) is not None:
                lines += self.copy(
                    carry.axes, arrays[i].access(carry.axes, f"c{i}"), self.outside("final", i, carry.axes)
                )
        for i, array in sums.items():
            axes = self.kernel.program.outs[i].axes
            if i in self.shares:
                last = axes[array.places[-1]] if array.places else None
                lines += self.copy(axes, array.access(axes), self.share(i, last), add=True)
            else:
                lines += self.copy(axes, array.access(axes), self.outside("out", i, axes))
        return lines

    def _time_pointers(self, names: list[str], time: str, later: str = "") -> list[str]:
        """Definitions of the per-step pointers that ``names`` (lines of text) use.

        ``later`` is the time of the step run after this one.
        """
        text = "\n".join(names)
        lines, ahead = [], []
        for (place, _), number in self.pointers.items():
            operand = self.kernel.operands[place]
            if timed(self.kernel, operand) and operand.role != "save" and _uses(text, f"q{number}"):
                lines.append(f"{self._ctype(operand)}* const q{number} = p{number} + t * s{place}_0;")
            if _uses(text, f"a{number}"):
                ahead.append(f"{self._ctype(operand)}* const a{number} = p{number} + b * s{place}_0;")
        for i in self.shared_order:
            if not self.kernel.program.outs[i].accumulate and _uses(text, f"y{i}"):
                lines.append(f"T* const y{i} = u{i} + t * e{i}_t;")
        lines = [f"const int64_t t = {time};", *lines] if lines or ahead else []
        return lines + ([f"const int64_t b = {later};", *ahead] if ahead else [])

    def _later(self, backwards: bool) -> str:
        """The time of the next step in run order, this one's where it is the last."""
        return "t > 0 ? t - 1 : t" if backwards else "t + 1 < steps ? t + 1 : t"

    def _first_sums(
        self, timing: Early, states: Callable[[Input], Access], new: Callable[[int], Access], time: str
    ) -> list[str]:
        """Lines that compute what ``timing`` carries over, for the first step, at ``time``."""
        program = timing.first
        if program is None:
            return []
        positions, last = (
            (self.last, self.last) if timing is self.main else (self.state_last, self.state_last)
        )

        def old(ref: Ref) -> Access:
            node = program.nodes[ref]
            assert isinstance(node, Input)
            return states(node)

        lines, _ = self.nests(
            program,
            {i: last[timing.since + i] for i in range(len(program.carries))},
            old,
            lambda i, axes, inplace: new(timing.since + i),
            {},
            positions,
        )
        return ["if (steps > 0) {", *self._time_pointers(lines, time), *lines, "}"]

    def _soon(self, names: list[str], work: int) -> list[str]:
        """Lines that ask for the streams used in ``names``, ``lead`` steps later than ``t``.

        A step's slice is short and its neighbours in memory belong to other steps or tasks,
        which the hardware does not see coming.  Nothing where the step does little work.
        """
        text = "\n".join(names)
        asked: dict[int, list[str]] = {}
        for (place, axes), number in self.pointers.items():
            operand = self.kernel.operands[place]
            used = _uses(text, f"q{number}") or _uses(text, f"a{number}")
            if operand.role == "stream" and place not in asked and used:
                start = f"(t + lead) * s{place}_0"
                asked[place] = [
                    f"soon(p{number}, (int64_t)sizeof(*p{number}) * ({start}{offset}) + {byte});"
                    for offset, byte in self._cache_lines(operand, place, axes)
                ]
        lines = [line for each in asked.values() for line in each]
        return ["if (lead) {", *lines, "}"] if 0 < 8 * len(lines) <= work else []

    def _lead(self, step: list[str], steps: int, within: str) -> list[str]:
        """The definition of ``lead`` if ``step`` uses it: 0 where there is no such step, for
        asking for memory that is not there takes longer than waiting for memory."""
        used = _uses("\n".join(step), "lead")
        return [f"const int64_t lead = {within} ? {steps} : 0;"] if used else []

    def _cache_lines(self, operand: Operand, place: int, axes: tuple[AxisName, ...]) -> list[tuple[str, int]]:
        """The cache lines of one step's slice: offset in entries, and bytes beyond it; none if many."""
        found: list[tuple[str, int]] = [("", 0)]
        for p, a in enumerate(axes):
            extent = self.spaces.axes[a].extent
            if self.spaces.axes[a].kind == "task":
                continue
            if not isinstance(extent, int) or extent * len(found) > 16 * LINE:
                return []
            if operand.axes[p] == operand.unit:
                found = [(o, b) for o, _ in found for b in range(0, extent * ITEM[operand.dtype], LINE)]
            else:
                found = [(f"{o} + {n} * s{place}_{p + 1}", b) for o, b in found for n in range(extent)]
        return found if len(found) <= 16 else []

    def _forward(self) -> list[str]:
        arrays, lines = self._carries()
        sums: dict[int, Array] = {}
        backwards = self.kernel.reverse
        self.leads = True
        before, step = self._program_step(arrays, None, sums)
        self.leads = False
        lines += before
        distance = min(FURTHEST, -(-AHEAD // max(self.work, 1)))
        asking = self._soon(step, self.work)
        distance = distance if asking else FURTHEST
        step = asking + step
        step = self._lead(step, -distance if backwards else distance, f"r + {distance} < steps") + step
        lines += self._start(arrays, "steps - 1" if backwards else "0")
        saves: list[str] = []
        if self.kernel.checkpoint:
            for i, carry in enumerate(self.kernel.program.carries):
                if self.operand("save", i) is not None:
                    saves += self._save(
                        i,
                        carry.axes,
                        arrays[i].access(carry.axes, f"c{i}"),
                        True,
                        "r / " + str(self.kernel.checkpoint),
                    )
        lines.append("for (int64_t r = 0; r < steps; r++) {")
        if saves:
            lines += [f"if (r % {self.kernel.checkpoint} == 0) {{", *saves, "}"]
        lines += self._time_pointers(step, "steps - 1 - r" if backwards else "r", self._later(backwards))
        lines += [*step, "}"]
        return lines + self._finish(arrays, sums)

    def _start(self, arrays: list[Array], time: str) -> list[str]:
        """What the main program carries over, for its first step."""
        carries = self.kernel.program.carries
        return self._first_sums(
            self.main,
            lambda node: arrays[node.index].access(node.axes, f"c{node.index}"),
            lambda i: arrays[i].access(carries[i].axes, f"c{i}"),
            time,
        )

    def _save(self, i: int, axes: tuple[AxisName, ...], state: Access, out: bool, slot: str) -> list[str]:
        """Copy a carry to its checkpoint, or back."""
        place = self.operand("save", i)
        outside = self.outside("save", i, axes)
        kind = self._ctype(self.kernel.operands[place or 0])
        number = outside.pointer[1:]
        lines = ["{", f"{kind}* const {outside.pointer} = p{number} + ({slot}) * s{place}_0;"]
        lines += self.copy(axes, state, outside) if out else self.copy(axes, outside, state)
        return [*lines, "}"]

    def _backward(self) -> list[str]:
        forward = self.kernel.recompute
        assert forward is not None
        chunk = max(1, self.kernel.checkpoint)
        arrays, lines = self._carries()
        history = [self.array(c.axes, self.state_last.get(i), chunk) for i, c in enumerate(forward.carries)]
        sums: dict[int, Array] = {}

        def state(ref: Ref) -> Access:
            node = self.kernel.program.nodes[ref]
            assert isinstance(node, Input)
            return history[node.index].access(node.axes, f"h{node.index}")

        self.leads = True
        before, step = self._program_step(arrays, state, sums)
        self.leads = False
        lines += before
        work = self.work
        needed = any(isinstance(n, Input) and n.kind == "state" for n in self.kernel.program.nodes)
        reverse = self.kernel.reverse
        lines += self._start(arrays, "0" if reverse else "steps - 1")
        lines += [
            f"for (int64_t z = (steps + {chunk - 1}) / {chunk} - 1; z >= 0; z--) {{",
            f"const int64_t first = z * {chunk}, many = steps - first < {chunk} ? steps - first : {chunk};",
        ]
        slots = [f"T* const h{i} = {a.name} + k * {a.size};" for i, a in enumerate(history)]
        again: list[str] = []
        if needed:
            for i, carry in enumerate(forward.carries):
                if self.operand("save", i) is not None:
                    lines += self._save(i, carry.axes, history[i].access(carry.axes), False, "z")
            assert self.again is not None
            lines += self._first_sums(
                self.again,
                lambda node: history[node.index].access(node.axes),
                lambda i: history[i].access(forward.carries[i].axes),
                "steps - 1 - first" if reverse else "first",
            )
            again, _ = self.nests(
                forward,
                self.state_last,
                lambda ref: self._history(history, forward, ref),
                lambda i, axes, inplace: history[i].access(axes, f"g{i}"),
                {},
            )
            nexts = [f"T* const g{i} = h{i} + {a.size};" for i, a in enumerate(history)]
            lines += ["for (int64_t k = 0; k + 1 < many; k++) {", *slots, *nexts]
            time = "steps - 1 - first - k" if reverse else "first + k"
            lines += self._time_pointers(again, time, self._later(reverse))
            lines += [*again, "}"]
        # While one chunk is walked back, the streams of the next one are asked for.
        step = self._soon(step + again, work) + step
        step = self._lead(step, chunk if reverse else -chunk, "z > 0") + step
        lines += ["for (int64_t k = many - 1; k >= 0; k--) {", *(slots if needed else [])]
        time = "steps - 1 - first - k" if reverse else "first + k"
        lines += self._time_pointers(step, time, self._later(not reverse))
        lines += [*step, "}", "}"]
        return lines + self._finish(arrays, sums)

    def _history(self, history: list[Array], forward: StepProgram, ref: Ref) -> Access:
        node = forward.nodes[ref]
        assert isinstance(node, Input)
        return history[node.index].access(node.axes, f"h{node.index}")

    # -- heads --------------------------------------------------------------------------

    def _ctype(self, operand: Operand) -> str:
        const = "const " if self._input(operand) else ""
        return const + STORAGE[operand.dtype]

    def _input(self, operand: Operand) -> bool:
        if operand.role == "save":
            return self.kernel.backward
        return operand.role in ("init", "stream", "constant")

    def _strides(self) -> list[str]:
        lines, n = [], 0
        for i, o in enumerate(self.kernel.operands):
            for p in range(len(o.axes) + timed(self.kernel, o)):
                lines.append(f"const int64_t s{i}_{p} = S[{n}]; (void)s{i}_{p};")
                n += 1
        for i in range(len(self.spaces.axes)):
            lines.append(f"const int64_t N{i} = N[{i}]; (void)N{i};")
        lines += self._far()
        lines.append("int64_t rest = task;")
        for axis in reversed([self.spaces.axes[a] for a in self.spaces.task_axes()]):
            i = axis.id
            if axis.kind == "task":
                lines.append(f"const int64_t o{i} = rest % N{i}; rest /= N{i};")
                continue
            tile = axis.extent if isinstance(axis.extent, int) else f"L[{i}]"
            lines.append(
                f"const int64_t m{i} = (N{i} + {tile} - 1) / {tile}, o{i} = rest % m{i} * {tile};"
                f" rest /= m{i};"
            )
            if not isinstance(axis.extent, int):
                lines.append(f"const int64_t n{i} = N{i} - o{i} < {tile} ? N{i} - o{i} : {tile};")
        return lines

    def _far(self) -> list[str]:
        """Whether the per-step results are too large to stay in the cache."""
        entries = ["0"]
        for o in self.kernel.operands:
            if o.role == "out" and timed(self.kernel, o):
                axes = self.kernel.program.outs[o.index].axes
                entries.append(" * ".join(["steps", *(f"N{self.spaces.axes[a].id}" for a in axes)]))
        limit = FAR_BYTES // (8 if self.kernel.compute == "f64" else 4)
        return [f"const bool far = {' + '.join(entries)} > {limit}; (void)far;"]

    def _pointers(self) -> list[str]:
        lines = []
        for (place, axes), number in self.pointers.items():
            operand = self.kernel.operands[place]
            first = 1 if timed(self.kernel, operand) else 0
            kind = self._ctype(operand)
            terms = [f"({kind}*)P[{place}]"]
            for p, a in enumerate(axes):
                if self.spaces.axes[a].kind != "full":
                    terms.append(f"o{self.spaces.axes[a].id} * s{place}_{p + first}")
            lines.append(f"{kind}* const p{number} = {' + '.join(terms)};")
        return lines

    def _share_strides(self) -> tuple[list[str], str]:
        """Definitions of the strides and offsets of shared outputs, and their total size."""
        lines, offset = [], "0"
        for i in sorted(self.shared_order):
            out = self.kernel.program.outs[i]
            size = "1"
            for p in reversed(self.shared_order[i]):
                lines.append(f"const int64_t e{i}_{p} = {size}; (void)e{i}_{p};")
                size = f"e{i}_{p} * N{self.spaces.axes[out.axes[p]].id}"
            lines.append(f"const int64_t e{i}_t = {size}, e{i}_o = {offset};")
            offset = f"e{i}_o + e{i}_t" + ("" if out.accumulate else " * steps")
        return lines, offset

    def _share_heads(self) -> list[str]:
        lines = self._share_strides()[0]
        for i in sorted(self.shared_order):
            out = self.kernel.program.outs[i]
            terms = [f"share + e{i}_o"]
            for p, a in enumerate(out.axes):
                if self.spaces.axes[a].kind != "full":
                    terms.append(f"o{self.spaces.axes[a].id} * e{i}_{p}")
            lines.append(f"T* const u{i} = {' + '.join(terms)};")
        return lines

    def _gather(self) -> list[str]:
        """Lines that sum the threads' shares into the outputs."""
        lines = []
        for i in sorted(self.shared_order):
            place = self.operand("out", i)
            assert place is not None
            out, operand = self.kernel.program.outs[i], self.kernel.operands[place]
            first = 0 if out.accumulate else 1
            strides = sum(len(o.axes) + timed(self.kernel, o) for o in self.kernel.operands[:place])
            mine, its = [f"e{i}_o"], [f"({STORAGE[operand.dtype]}*)P[{place}]"]
            loops = [f"for (int64_t t = 0; t < {'1' if out.accumulate else 'steps'}; t++)"]
            if not out.accumulate:
                mine.append(f"t * e{i}_t")
                its.append(f"t * S[{strides}]")
            for p in self.shared_order[i]:
                loops.append(f"for (int64_t j{p} = 0; j{p} < N{self.spaces.axes[out.axes[p]].id}; j{p}++)")
                mine.append(f"j{p} * e{i}_{p}")
                its.append(f"j{p} * S[{strides + p + first}]")
            lines += ["#pragma omp for schedule(static)", *loops, "{"]
            lines += [
                "  T sum = 0;",
                f"  for (int w = 0; w < threads; w++) sum += shares[w * total + {' + '.join(mine)}];",
                f"  st1({' + '.join(its)}, sum);",
                "}",
            ]
        return lines

    def _scratch(self) -> list[str]:
        lines, offset = [], "arena"
        for array, copies in self.arrays:
            lines.append(
                f"T* const {array.name} = {offset}; "
                f"const int64_t {array.name}_size = {array.size}; (void){array.name}_size;"
            )
            offset = f"{array.name} + {times(array.size, copies)}"
        return lines

    def _signature(self) -> str:
        return (
            "static void run(char* const* P, const int64_t* S, const int64_t* N, const int64_t* L,\n"
            "                int64_t steps, int64_t task, T* arena, T* share)"
        )

    def _entry(self) -> str:
        lines = [f"const int64_t N{i} = N[{i}]; (void)N{i};" for i in range(len(self.spaces.axes))]
        lines.append(f"int64_t L[{len(self.spaces.axes) + 1}] = {{0}};")
        lines.append("int64_t tasks = 1;")
        tiles: list[tuple[AxisName, Axis]] = []
        for a in self.spaces.task_axes():
            axis = self.spaces.axes[a]
            if axis.kind == "task":
                lines.append(f"tasks *= N{axis.id};")
            elif isinstance(axis.extent, int):
                lines.append(f"tasks *= (N{axis.id} + {axis.extent - 1}) / {axis.extent};")
            else:
                tiles.append((a, axis))
        early = [] if self.shared_order else ["if (tasks == 0) return 0;"]
        lines += early
        if tiles:
            lines += ["if (tasks > 0) {"]
            for a, axis in sorted(tiles, key=lambda t: t[0] == self.spaces.row):
                lines += self._tile(a, axis)
            lines += ["}"]
        lines += early if tiles else []
        need = " + ".join(str(times(a.size, c)) for a, c in self.arrays) or "0"
        strides, total = self._share_strides()
        lines += [
            f"const int64_t need = {need} + W;",
            f"if ((double)tasks * (double)(steps + 1) * {max(1, self.work)}.0 < 20000.0) threads = 1;",
            "if (threads > tasks) threads = tasks > 0 ? (int)tasks : 1;",
            "int failed = 0;",
        ]
        if self.shared_order:
            lines += [
                *strides,
                f"const int64_t total = {total} + W;",
                "T* const shares = (T*)calloc((size_t)threads * (size_t)total, sizeof(T));",
                "if (!shares) return 1;",
            ]
        # Shares are summed thread by thread: equal chunks keep the result the same at every call.
        schedule = "static" if self.shared_order else "dynamic, 1"
        share = "shares + omp_get_thread_num() * total" if self.shared_order else "0"
        return "\n".join(
            [
                'extern "C" int kernel(char* const* P, const int64_t* S, const int64_t* N,',
                "                      int64_t steps, int threads) {",
                *(f"  {line}" for line in lines),
                "  #pragma omp parallel num_threads(threads) if (threads > 1)",
                "  {",
                "    void* memory = 0;",
                "    if (posix_memalign(&memory, 64, (size_t)need * sizeof(T)) != 0) {",
                "      #pragma omp atomic write",
                "      failed = 1;",
                "      memory = 0;",
                "    }",
                f"    #pragma omp for schedule({schedule})",
                "    for (int64_t task = 0; task < tasks; task++)",
                f"      if (memory) run(P, S, N, L, steps, task, (T*)memory, {share});",
                "    settle();",
                *(f"    {line}" for line in self._gather()),
                "    free(memory);",
                "  }",
                *(["  free(shares);"] if self.shared_order else []),
                "  return failed;",
                "}",
                "",
            ]
        )

    def _tile(self, name: AxisName, axis: Axis) -> list[str]:
        """The run of a tile axis that one task takes, chosen at launch."""
        i = axis.id
        shared = name == self.spaces.row and self.spaces.shared
        parts = "threads" if shared else "4 * threads"
        grain = 1 if name == self.spaces.row else 4 * self.lanes
        return [
            f"{{ const int64_t want = ({parts} + tasks - 1) / tasks;",
            f"  int64_t tile = ((N{i} + want - 1) / want + {grain - 1}) / {grain} * {grain};",
            f"  if (tile > {axis.capacity}) tile = {axis.capacity};",
            "  if (tile < 1) tile = 1;",
            f"  L[{i}] = tile; tasks *= (N{i} + tile - 1) / tile; }}",
        ]


def _uses(text: str, name: str) -> bool:
    """Whether ``name`` occurs as a whole word."""
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        if not (end < len(text) and (text[end].isalnum() or text[end] == "_")) and not (
            at > 0 and (text[at - 1].isalnum() or text[at - 1] == "_")
        ):
            return True
        at = text.find(name, end)
    return False


def emit(kernel: Kernel, isa: Isa) -> str:
    """C++ source for ``kernel``."""
    return KernelWriter(kernel, isa).text()


__all__ = ["OutSpec", "emit", "timed"]
