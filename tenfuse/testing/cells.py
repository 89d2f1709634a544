"""One step of a recipe's recurrence, each expression in one of its usual spellings.

Takes a normal recipe; leaves a ``Cell``: the statements of one step and the tensors they
want, by name and axes (letters: b batch, h heads, k keys, v values, w width).
"""

from __future__ import annotations

import dataclasses

from tenfuse.testing.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Cell:
    """``update`` assigns the carries from ``<stream>_t``; ``read`` is the step's output."""

    streams: dict[str, str]
    constants: dict[str, str]
    carries: dict[str, str]
    before: list[str]
    gates: list[str]
    update: list[str]
    read: str
    out: str
    free: str = ""
    """The update from a zero state, for a carry that starts as None."""


class Bits:
    """Small decisions taken from one integer, so that shrinking it simplifies them all."""

    def __init__(self, number: int) -> None:
        self.number = number

    def pick(self, *choices: str) -> str:
        self.number, i = divmod(self.number, len(choices))
        return choices[i]


class Speller:
    """Expressions, each in one of its usual spellings."""

    def __init__(self, r: Recipe) -> None:
        self.r, self.bits, self.kind = r, Bits(r.order), Bits(r.variant)
        self.methods = r.init not in ("number", "none")

    def mul(self, a: str, b: str) -> str:
        both = (f"{a} * {b}", f"{b} * {a}")
        return (
            self.bits.pick(*both, f"torch.mul({a}, {b})", f"{a}.mul({b})")
            if self.methods
            else self.bits.pick(*both)
        )

    def add(self, a: str, b: str) -> str:
        both = (f"{a} + {b}", f"{b} + {a}")
        return (
            self.bits.pick(*both, f"torch.add({a}, {b})", f"({a}).add({b})")
            if self.methods
            else self.bits.pick(*both)
        )

    def decay(self, gate: str, state: str, new: str) -> str:
        """``gate * state + new``."""
        if not self.methods:
            return self.add(self.mul(gate, state), new)
        return self.bits.pick(
            f"{gate} * {state} + {new}",
            f"{new} + {state} * {gate}",
            f"torch.addcmul({new}, {gate}, {state})",
            f"{state}.mul({gate}).add({new})",
            f"torch.mul({gate}, {state}) + {new}",
        )

    def apply(self, h: str, matrix: str) -> str:
        """Row vectors ``h [b, w]`` times ``matrix [w, w]``."""
        if self.r.contract == "einsum":
            return self.bits.pick(
                f"torch.einsum('bw,we->be', {h}, {matrix})", f"torch.einsum('we, bw -> be', {matrix}, {h})"
            )
        if self.r.contract == "matmul":
            return self.bits.pick(
                f"{h} @ {matrix}",
                f"torch.matmul({h}, {matrix})",
                f"torch.nn.functional.linear({h}, {matrix}.t())",
            )
        return f"({h}.unsqueeze(-1) * {matrix}).sum({self.bits.pick('-2', '1')})"

    def look(self, key: str) -> str:
        """``key^T S``: [b, h, k] with [b, h, k, v]."""
        if self.r.contract == "einsum":
            return self.bits.pick(
                f"torch.einsum('bhk,bhkv->bhv', {key}, S)", f"torch.einsum('...kv,...k->...v', S, {key})"
            )
        if self.r.contract == "matmul":
            return self.bits.pick(
                f"({key}.unsqueeze(-2) @ S).squeeze(-2)",
                f"torch.matmul(S.transpose(-1, -2), {key}.unsqueeze(-1)).squeeze(-1)",
            )
        return self.bits.pick(f"({key}[..., None] * S).sum(-2)", f"(S * {key}.unsqueeze(-1)).sum(dim=2)")

    def outer(self, key: str, value: str) -> str:
        if self.r.contract == "einsum":
            return f"torch.einsum('bhk,bhv->bhkv', {key}, {value})"
        if self.r.contract == "matmul":
            return f"{key}.unsqueeze(-1) @ {value}.unsqueeze(-2)"
        return self.bits.pick(
            f"{key}[..., :, None] * {value}[..., None, :]", f"{value}[:, :, None] * {key}.unsqueeze(-1)"
        )


def cell(s: Speller) -> Cell:
    """The cell of a recipe, spelt."""
    one = {"x": "bw"}
    name = s.r.cell
    if name == "ema":
        free = s.mul("(1 - g)", "x_t")
        return Cell(
            one,
            {"d": "w"},
            {"h": "bw"},
            ["g = torch.sigmoid(d)"],
            [],
            [f"h = {s.decay('g', 'h', free)}"],
            "h",
            "bw",
            free,
        )
    if name == "gated":
        free = s.mul("x_t", "(1 - f_t)")
        return Cell(
            {"x": "bw", "f": "bw"},
            {},
            {"h": "bw"},
            [],
            [f"f_t = {s.bits.pick('torch.sigmoid(f_t)', 'f_t.sigmoid()')}"],
            [f"h = {s.decay('f_t', 'h', free)}"],
            s.kind.pick("h", "h * f_t"),
            "bw",
            free,
        )
    if name in ("rotation", "momentum"):
        return _block(s)
    if name in ("attention", "delta"):
        return _low_rank(s)
    if name == "dense":
        update = s.add(f"({s.apply(s.kind.pick('(g * h)', 'h'), 'R')})", "x_t")
        return Cell(
            one,
            {"d": "w", "R": "ww"},
            {"h": "bw"},
            ["g = torch.sigmoid(d)"],
            [],
            [f"h = {update}"],
            s.kind.pick("h", "h * g"),
            "bw",
        )
    if name == "maxplus":
        update = s.bits.pick(
            "torch.maximum(h + x_t, f_t)", "torch.maximum(f_t, x_t + h)", "torch.max(h + x_t, f_t)"
        )
        return Cell({"x": "bw", "f": "bw"}, {}, {"h": "bw"}, [], [], [f"h = {update}"], "h", "bw")
    return _nonlinear(s)


def _block(s: Speller) -> Cell:
    carries = {"a": "bw", "b": "bw"}
    if s.r.cell == "rotation":
        before = ["c, s = 0.9 * torch.cos(d), 0.9 * torch.sin(d)"]
        left = s.add(f"({s.mul('c', 'a')} - {s.mul('s', 'b')})", "x_t")
        right = s.add(f"({s.mul('s', 'a')})", f"({s.mul('c', 'b')})")
        update = s.bits.pick(f"a, b = {left}, {right}", f"new = {left}\nb = {right}\na = new").split("\n")
        return Cell(
            {"x": "bw"}, {"d": "w"}, carries, before, [], update, s.kind.pick("a + b", "a", "a * c - b"), "bw"
        )
    update = [f"b = {s.decay('g', 'b', 'x_t')}", f"a = {s.decay('f_t', 'a', '0.5 * b')}"]
    return Cell(
        {"x": "bw", "f": "bw"},
        {"d": "w"},
        carries,
        ["g = torch.sigmoid(d)"],
        ["f_t = torch.sigmoid(f_t)"],
        update,
        s.kind.pick("a", "a - b"),
        "bw",
    )


def _low_rank(s: Speller) -> Cell:
    streams = {"q": "bhk", "k": "bhk", "v": "bhv", "f": "bh"}
    gates = ["f_t = torch.sigmoid(f_t)", "k_t = 0.5 * k_t"]
    carries = {"S": "bhkv"}
    if s.r.cell == "attention":
        update = [f"S = {s.decay('f_t[..., None, None]', 'S', s.outer('k_t', 'v_t'))}"]
    else:
        erase = f"u = (v_t - {s.look('k_t')}) * f_t{s.bits.pick('[..., None]', '.unsqueeze(-1)')}"
        update = [erase, f"S = {s.kind.pick('S + ', 'g[:, None, None] * S + ')}{s.outer('k_t', 'u')}"]
    constants = {"d": "h"} if any("g[" in line for line in update) else {}
    before = ["g = torch.sigmoid(d)"] if constants else []
    return Cell(streams, constants, carries, before, gates, update, s.look("q_t"), "bhv")


def _nonlinear(s: Speller) -> Cell:
    if s.r.cell == "rnn":
        update = [f"h = {s.bits.pick('torch.tanh(', '(')}{s.apply('h', 'R')} + x_t)"]
        update = [line if "tanh" in line else line + ".tanh()" for line in update]
        return Cell({"x": "bw"}, {"R": "ww"}, {"h": "bw"}, [], [], update, "h", "bw")
    if s.r.cell == "state_gate":
        update = [
            "z = torch.sigmoid(f_t + d * h)",
            f"h = {s.bits.pick('(1 - z) * h + z * x_t', 'h + z * (x_t - h)', 'torch.lerp(h, x_t, z)')}",
        ]
        return Cell({"x": "bw", "f": "bw"}, {"d": "w"}, {"h": "bw"}, [], [], update, "h", "bw")
    update = [
        f"p = {s.apply('h', 'R')} + x_t",
        "i, o = torch.sigmoid(p), torch.sigmoid(f_t + h)",
        "c = o * c + i * torch.tanh(p)",
        "h = o * torch.tanh(c)",
    ]
    return Cell({"x": "bw", "f": "bw"}, {"R": "ww"}, {"h": "bw", "c": "bw"}, [], [], update, "h", "bw")
