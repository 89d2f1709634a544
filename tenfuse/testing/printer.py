"""A ``Recipe`` as Python source: ``def model(...)`` with a plain loop over time.

Takes a normal recipe; leaves the text and the tensors it wants, by name and axes (letters:
b batch, h heads, k keys, v values, w width; time is put in where the recipe says).
"""

from __future__ import annotations

import dataclasses
import re

from tenfuse.testing.cells import Cell, Speller, cell
from tenfuse.testing.recipe import Recipe

HEADS = 2


@dataclasses.dataclass(frozen=True)
class Printed:
    source: str
    streams: dict[str, str]
    constants: dict[str, str]
    carries: dict[str, str]
    """The initial states that the model takes, if it takes any."""
    states: int
    """How many states the loop carries."""


def printed(r: Recipe) -> Printed:
    """The program of a normal recipe."""
    speller = Speller(r)
    made = cell(speller)
    constants = dict(made.constants)
    if r.project:
        width = made.streams[next(iter(made.streams))][-1]
        constants["P"] = width + width
    if r.mutant == "depth":
        constants["L"] = "tw"
    given = dict(made.carries) if r.init == "given" else {}
    arguments = [*made.streams, *constants, *(f"{name}0" for name in given)]
    lines = _Body(r, speller, made, constants).lines()
    text = "\n".join(
        [
            "import torch",
            "",
            "",
            *lines[0],
            f"def model({', '.join(arguments)}):",
            *(f"    {x}" for x in lines[1]),
        ]
    )
    initial = {f"{n}0": a for n, a in given.items()}
    return Printed(text + "\n", made.streams, constants, initial, len(made.carries))


class _Body:
    """The lines of ``model``: set-up, the loop, what it returns."""

    def __init__(self, r: Recipe, speller: Speller, made: Cell, constants: dict[str, str]) -> None:
        self.r, self.s, self.cell, self.constants = r, speller, made, constants
        self.first = next(iter(made.streams))
        self.middle = r.steps // 2

    def at(self, axes: str) -> int:
        """Where time stands in a stream with these per-step axes."""
        return min(self.r.time, len(axes))

    def out_at(self) -> int:
        return min(self.r.out_time, len(self.cell.out))

    def lines(self) -> tuple[list[str], list[str]]:
        helper, step = self._step()
        body = [f"T = {self.first}.shape[{self.at(self.cell.streams[self.first])}]"]
        body += self._setup()
        body += self._loop(step)
        body += self._result()
        return helper, body

    def _setup(self) -> list[str]:
        r, cell = self.r, self.cell
        lines = list(cell.before)
        if r.casts:
            lines += [
                f"{n} = {n}.float()" for n in ("g", "c", "s") if any(self._assigns(x, n) for x in lines)
            ]
            lines += [f"{n} = {n}.float()" for n in self.constants]
        first = f"{self.first}.select({self.at(cell.streams[self.first])}, 0)"
        for name, axes in cell.carries.items():
            lines.append(f"{name} = {self._initial(name, axes, first)}")
        if r.mutant == "stale":
            lines.append(f"old = {next(iter(cell.carries))}")
        if r.mutant == "escape":
            lines.append("middle = None")
        if r.collect in ("stack", "cat"):
            lines.append("out = []")
        elif r.collect in ("buffer", "copy"):
            shape = [f"{self._size(a)}" for a in cell.out]
            shape.insert(self.out_at(), "T")
            make = (
                "zeros"
                if "break" in r.mutant or r.mutant == "continue"
                else self.s.bits.pick("zeros", "empty")
            )
            lines.append(f"out = torch.{make}({', '.join(shape)}, dtype={self.first}.dtype)")
        for name, axes in cell.streams.items():
            at = self.at(axes)
            if r.access in ("unbind", "split", "chunk"):
                call = {"unbind": f"unbind({at})", "split": f"split(1, dim={at})", "chunk": f"chunk(T, {at})"}
                lines.append(f"{name}_s = {name}.{call[r.access]}")
            elif r.access == "moved":
                lines.append(f"{name}_s = {name}.{self.s.bits.pick('movedim', 'moveaxis')}({at}, 0)")
        return lines

    def _assigns(self, line: str, name: str) -> bool:
        return name in [x.strip() for x in line.split("=")[0].split(",")]

    def _size(self, axis: str) -> int:
        r = self.r
        return {"b": r.batch, "w": r.width, "h": HEADS, "k": r.width, "v": r.width + 1, "t": r.steps}[axis]

    def _initial(self, name: str, axes: str, first: str) -> str:
        if self.r.init == "given":
            return f"{name}0.float()" if self.r.casts else f"{name}0"
        if self.r.init in ("number", "none"):
            return "None" if self.r.init == "none" else self.s.bits.pick("0.0", "0")
        shape = ", ".join(str(self._size(a)) for a in axes)
        dtype = "torch.float32" if self.r.casts else f"{self.first}.dtype"
        like = [f"torch.zeros({shape}, dtype={dtype})"]
        if not self.r.casts:
            like.append(f"{self.first}.new_zeros({shape})")
            if axes == self.cell.streams[self.first]:
                like.append(f"torch.zeros_like({first})")
        return self.s.bits.pick(*like)

    def _slices(self) -> list[str]:
        r = self.r
        if r.access in ("zip", "enumerate"):
            return []
        lines = []
        for name, axes in self.cell.streams.items():
            at, after = self.at(axes), len(axes) - self.at(axes)
            t = self._index() if name == self.first else "t"
            front = ":, " * at
            lines.append(
                f"{name}_t = "
                + {
                    "index": f"{name}[{front}{t}]",
                    "ellipsis": f"{name}[..., {t}{', :' * after}]",
                    "select": f"{name}.select({at}, {t})",
                    "narrow": f"{name}.narrow({at}, {t}, 1).squeeze({at})",
                    "slice": f"{name}[{front}{t}:{t} + 1].squeeze({at})",
                    "unbind": f"{name}_s[{t}]",
                    "split": f"{name}_s[{t}].squeeze({at})",
                    "chunk": f"{name}_s[{t}].squeeze({at})",
                    "moved": f"{name}_s[{t}]",
                }[r.access]
            )
        return lines

    def _index(self) -> str:
        return {
            "lag2": "t - 2",
            "lag_guarded": "(t - 2 if t >= 2 else 0)",
            "permuted": "(t * 3 + 1) % T",
        }.get(self.r.mutant, "t")

    def _step(self) -> tuple[list[str], list[str]]:
        """``(helper function, the lines of one step)``."""
        r, cell = self.r, self.cell
        lines = self._slices()
        if r.casts:
            lines += [
                f"{n}_t = {n}_t.{self.s.bits.pick('float()', 'to(torch.float32)')}" for n in cell.streams
            ]
        if r.project:
            lines.append(f"{self.first}_t = {self.first}_t @ P")
        lines += cell.gates
        lines += self._mutant("input")
        read = f"y = {cell.read}"
        cast = [f"y = y.to({self.first}.dtype)"] if r.casts or r.mutant == "dtype_change" else []
        helper, update = self._update()
        update = self._mutant("state before") + update + self._mutant("state")
        reading = [read, *cast]
        return helper, [
            *lines,
            *(reading + update if r.read == "before" else update + reading),
            *self._store(),
            *self._mutant("end"),
        ]

    def _update(self) -> tuple[list[str], list[str]]:
        r, cell = self.r, self.cell
        if r.init == "none":
            (line,) = cell.update
            name, _, value = line.partition(" = ")
            if self.s.bits.pick("inline", "block") == "inline":
                return [], [f"{name} = {cell.free} if {name} is None else {value}"]
            return [], [f"if {name} is None:", f"    {name} = {cell.free}", "else:", f"    {line}"]
        if not r.helper:
            return [], list(cell.update)
        carries = list(cell.carries)
        used = " ".join(cell.update)
        names = [n for n in (*(f"{s}_t" for s in cell.streams), "g", "c", "s", "d", "R") if _reads(used, n)]
        parameters = [*carries, *(n for n in names if n not in carries)]
        define = [
            f"def step({', '.join(parameters)}):",
            *(f"    {x}" for x in cell.update),
            f"    return {', '.join(carries)}",
            "",
            "",
        ]
        return define, [f"{', '.join(carries)} = step({', '.join(parameters)})"]

    def _mutant(self, place: str) -> list[str]:
        h = next(iter(self.cell.carries))
        x = f"{self.first}_t"
        k = self.middle
        scale = "0.5"
        table: dict[tuple[str, str], list[str]] = {
            ("odd_input", "input"): [f"if t == {k}:", f"    {x} = -{x}"],
            ("lag_guarded", "input"): [f"{x} = {x} if t >= 2 else {x} * 0"],
            ("break_data", "input"): [f"if bool(({x} > 1e9).any()):", "    break"],
            ("break_item", "input"): [f"if {x}.sum().item() > 1e9:", "    break"],
            ("break_python", "input"): [f"if t == {k}:", "    break"],
            ("continue", "input"): ["if t % 3 == 1:", "    continue"],
            ("depth", "input"): [f"{x} = {x} * L[t].sum()"],
            ("stale", "state before"): [f"previous = {h}"],
            ("stale", "state"): [f"{h} = {h} + 0.1 * old", "old = previous"],
            ("tanh", "state"): [f"{h} = torch.tanh({h})"],
            ("clamp", "state"): [f"{h} = {h}.clamp(-0.5, 0.5)"],
            ("gate_on_state", "state"): [f"{h} = {h} * torch.sigmoid({h})"],
            ("odd_step", "state"): [f"if t == {k}:", f"    {h} = {h} * 2"],
            ("odd_last", "state"): ["if t == T - 1:", f"    {h} = {h} + 1"],
            ("escape", "state"): [f"if t == {k}:", f"    middle = {h}"],
            ("view_write", "state"): [f"view = {h}[..., 0]", f"view.mul_({scale})"],
            ("slice_write", "state"): [f"{h}[:, 0] = {h}[:, 0] * {scale}"],
            ("dropout", "state"): [f"{h} = torch.nn.functional.dropout({h}, 0.25)"],
            ("noise", "state"): [f"{h} = {h} + 0.1 * torch.randn_like({h})"],
            ("periodic", "state"): ["if t % 3 == 0:", f"    {h} = {h} * {scale}"],
            ("dtype_change", "state"): [f"if t == {k}:", f"    {h} = {h}.double()"],
            ("history", "state"): ["if out:", f"    {h} = {h} + 0.1 * sum(out)"],
            ("detach", "state"): [f"{h} = {h}.detach()"],
            ("detach_chunk", "state"): ["if t % 4 == 0:", f"    {h} = {h}.detach()"],
            ("wrong_side", "state"): [f"{h} = R @ {h}"],
            ("append_then_inplace", "end"): [f"{h} += 0.1 * {x}"],
            ("overwrite_input", "end"): [
                f"{self.first}[{':, ' * self.at(self.cell.streams[self.first])}t] = {x} * 2"
            ],
        }
        return table.get((self.r.mutant, place), [])

    def _store(self) -> list[str]:
        at = self.out_at()
        slot = f"out[{':, ' * at}t]"
        return {
            "stack": [self.s.bits.pick("out.append(y)", "out += [y]")],
            "cat": [f"out.append(y.unsqueeze({at}))"],
            "buffer": [f"{slot} = y"],
            "copy": [self.s.bits.pick(f"{slot}.copy_(y)", f"out.select({at}, t).copy_(y)")],
            "final": [],
        }[self.r.collect]

    def _loop(self, step: list[str]) -> list[str]:
        inside = [f"    {x}" for x in step]
        deeper = [f"    {x}" for x in inside]
        if self.r.access in ("zip", "enumerate"):
            return [self._zipped(), *inside]
        shape = f"{self.first}.size({self.at(self.cell.streams[self.first])})"
        return {
            "range": ["for t in range(T):", *inside],
            "shape": [f"for t in range({shape}):", *inside],
            "while": ["t = 0", "while t < T:", *self._counted(inside)],
            "chunked": [
                "for start in range(0, T, 3):",
                "    for t in range(start, min(start + 3, T)):",
                *deeper,
            ],
            "unrolled": [
                "for start in range(0, T - T % 2, 2):",
                "    t = start",
                *inside,
                "    t = start + 1",
                *inside,
                "for t in range(T - T % 2, T):",
                *inside,
            ],
            "reversed": ["for t in reversed(range(T)):", *inside],
            "down": ["for t in range(T - 1, -1, -1):", *inside],
            "mirror": ["for i in range(T):", "    t = T - 1 - i", *inside],
        }[self.r.header]

    def _counted(self, inside: list[str]) -> list[str]:
        """A ``while`` counts at its end, and before each ``continue``."""
        lines = []
        for line in inside:
            if line.strip() == "continue":
                lines.append(line.replace("continue", "t += 1"))
            lines.append(line)
        return [*lines, "    t += 1"]

    def _zipped(self) -> str:
        names = list(self.cell.streams)
        parts = [f"{n}.unbind({self.at(self.cell.streams[n])})" for n in names]
        if len(names) == 1:
            return f"for t, {names[0]}_t in enumerate({parts[0]}):"
        slices = ", ".join(f"{n}_t" for n in names)
        if self.r.access == "zip":
            return f"for t, {slices} in zip(range(T), {', '.join(parts)}):"
        return f"for t, ({slices}) in enumerate(zip({', '.join(parts)})):"

    def _result(self) -> list[str]:
        lines, at = [], self.out_at()
        results = list(self.cell.carries)
        if self.r.collect in ("stack", "cat"):
            if self.r.backwards:
                lines.append(self.s.bits.pick("out = out[::-1]", "out.reverse()"))
            lines.append(f"out = torch.{self.r.collect}(out, {self.s.bits.pick('', 'dim=')}{at})")
        if self.r.collect != "final":
            results.insert(0, "out")
        if self.r.chain:
            front = ":, " * at
            lines += [
                "e = 0",
                "smooth = []",
                "for t in range(T):",
                f"    e = 0.5 * e + out[{front}t]",
                "    smooth.append(e)",
                f"out = torch.stack(smooth, {at})",
            ]
        extra = {
            "escape": ["middle"],
            "alias_out": [self.first],
            "alias_view": [f"{self.first}[..., 0]"],
            "leak": ["t", f"{self.first}_t"],
        }
        results += extra.get(self.r.mutant, [])
        return [*lines, f"return {', '.join(results)}" if len(results) > 1 else f"return ({results[0]},)"]


def _reads(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.']){name}(?![\w'])", text) is not None
