"""One step of a recipe's recurrence, each expression in one of its usual spellings.

Takes a normal recipe; leaves a ``Cell``: the statements of one step and the tensors they
want, by name and axes (letters: b batch, h heads, k keys, v values, w width).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tenfuse.testing.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """``update`` assigns the carries from ``<stream>_t``; ``read`` is the step's output."""

    streams: dict[str, str]
    carries: dict[str, str]
    update: list[str]
    read: str
    out: str = "bw"
    constants: dict[str, str] = dataclasses.field(default_factory=dict)
    before: list[str] = dataclasses.field(default_factory=list)
    gates: list[str] = dataclasses.field(default_factory=list)
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


_X, _GATED, _STATE = {"x": "bw"}, {"x": "bw", "f": "bw"}, {"h": "bw"}
_DECAY = ["g = torch.sigmoid(d)"]
_PAIR = {"a": "bw", "b": "bw"}


def cell(s: Speller) -> Cell:
    """The cell of a recipe, spelt."""
    return _SPELT[s.r.cell](s)


def _ema(s: Speller) -> Cell:
    free = s.mul("(1 - g)", "x_t")
    update = [f"h = {s.decay('g', 'h', free)}"]
    return Cell(
        streams=_X, constants={"d": "w"}, carries=_STATE, before=_DECAY, update=update, read="h", free=free
    )


def _gated(s: Speller) -> Cell:
    free = s.mul("x_t", "(1 - f_t)")
    gates = [f"f_t = {s.bits.pick('torch.sigmoid(f_t)', 'f_t.sigmoid()')}"]
    update = [f"h = {s.decay('f_t', 'h', free)}"]
    read = s.kind.pick("h", "h * f_t")
    return Cell(streams=_GATED, carries=_STATE, gates=gates, update=update, read=read, free=free)


def _rotation(s: Speller) -> Cell:
    before = ["c, s = 0.9 * torch.cos(d), 0.9 * torch.sin(d)"]
    left = s.add(f"({s.mul('c', 'a')} - {s.mul('s', 'b')})", "x_t")
    right = s.add(f"({s.mul('s', 'a')})", f"({s.mul('c', 'b')})")
    update = s.bits.pick(f"a, b = {left}, {right}", f"new = {left}\nb = {right}\na = new").split("\n")
    read = s.kind.pick("a + b", "a", "a * c - b")
    return Cell(streams=_X, constants={"d": "w"}, carries=_PAIR, before=before, update=update, read=read)


def _momentum(s: Speller) -> Cell:
    update = [f"b = {s.decay('g', 'b', 'x_t')}", f"a = {s.decay('f_t', 'a', '0.5 * b')}"]
    return Cell(
        streams=_GATED, constants={"d": "w"}, carries=_PAIR, before=_DECAY,
        gates=["f_t = torch.sigmoid(f_t)"], update=update, read=s.kind.pick("a", "a - b"),
    )  # fmt: skip


def _attention(s: Speller) -> Cell:
    return _low_rank(s, [f"S = {s.decay('f_t[..., None, None]', 'S', s.outer('k_t', 'v_t'))}"])


def _delta(s: Speller) -> Cell:
    erase = f"u = (v_t - {s.look('k_t')}) * f_t{s.bits.pick('[..., None]', '.unsqueeze(-1)')}"
    return _low_rank(s, [erase, f"S = {s.kind.pick('S + ', 'g[:, None, None] * S + ')}{s.outer('k_t', 'u')}"])


def _low_rank(s: Speller, update: list[str]) -> Cell:
    decays = any("g[" in line for line in update)
    return Cell(
        streams={"q": "bhk", "k": "bhk", "v": "bhv", "f": "bh"}, carries={"S": "bhkv"},
        constants={"d": "h"} if decays else {}, before=_DECAY if decays else [],
        gates=["f_t = torch.sigmoid(f_t)", "k_t = 0.5 * k_t"], update=update, read=s.look("q_t"), out="bhv",
    )  # fmt: skip


def _dense(s: Speller) -> Cell:
    product = s.apply(s.kind.pick("(g * h)", "h"), "R")
    update = [f"h = {s.add(f'({product})', 'x_t')}"]
    return Cell(
        streams=_X, constants={"d": "w", "R": "ww"}, carries=_STATE, before=_DECAY, update=update,
        read=s.kind.pick("h", "h * g"),
    )  # fmt: skip


def _max_plus(s: Speller) -> Cell:
    update = s.bits.pick(
        "torch.maximum(h + x_t, f_t)", "torch.maximum(f_t, x_t + h)", "torch.max(h + x_t, f_t)"
    )
    return Cell(streams=_GATED, carries=_STATE, update=[f"h = {update}"], read="h")


def _rnn(s: Speller) -> Cell:
    update = f"h = {s.bits.pick('torch.tanh(', '(')}{s.apply('h', 'R')} + x_t)"
    update = update if "tanh" in update else update + ".tanh()"
    return Cell(streams=_X, constants={"R": "ww"}, carries=_STATE, update=[update], read="h")


def _state_gate(s: Speller) -> Cell:
    blend = s.bits.pick("(1 - z) * h + z * x_t", "h + z * (x_t - h)", "torch.lerp(h, x_t, z)")
    update = ["z = torch.sigmoid(f_t + d * h)", f"h = {blend}"]
    return Cell(streams=_GATED, constants={"d": "w"}, carries=_STATE, update=update, read="h")


def _lstm(s: Speller) -> Cell:
    update = [
        f"p = {s.apply('h', 'R')} + x_t",
        "i, o = torch.sigmoid(p), torch.sigmoid(f_t + h)",
        "c = o * c + i * torch.tanh(p)",
        "h = o * torch.tanh(c)",
    ]
    return Cell(
        streams=_GATED, constants={"R": "ww"}, carries={"h": "bw", "c": "bw"}, update=update, read="h"
    )


_SPELT: dict[str, Callable[[Speller], Cell]] = {
    "ema": _ema, "gated": _gated, "rotation": _rotation, "momentum": _momentum, "attention": _attention,
    "delta": _delta, "dense": _dense, "maxplus": _max_plus, "rnn": _rnn, "state_gate": _state_gate,
    "lstm": _lstm,
}  # fmt: skip
