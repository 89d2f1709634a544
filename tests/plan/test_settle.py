"""Which of several plans is used, by what compilers said of their kernels."""

import dataclasses
import math

import pytest

from tenfuse.plan.tiles import settle
from tenfuse.plan.tiles.settle import Verdict, settled
from tenfuse.reasons import NO_TILES, QUARANTINED, Refused, refuse


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of one kernel."""

    name: str

    def key(self):
        return self.name


def chosen(monkeypatch, plans, spilled, wrong=(), costs=None):
    """What is chosen of plans that are proposed in this order, and which were tried."""
    monkeypatch.setattr(settle, "_step", lambda plan, said: (costs or {}).get(plan.name, said[plan.name]))
    rest, tried = iter(plans[1:]), []

    def again(said):
        assert set(said) == {*tried}
        found = next(rest, None)
        if found is None:
            raise refuse(NO_TILES, "none is left")
        return Plan(found)

    def trial(plan):
        tried.append(plan.name)
        problem = refuse(QUARANTINED, plan.name) if plan.name in wrong else None
        return Verdict({plan.name: spilled[plan.name]}, problem)

    return settled(Plan(plans[0]), again, trial).name, tried


def test_a_plan_that_fits_is_the_only_one(monkeypatch):
    assert chosen(monkeypatch, ["a", "b"], {"a": 0}) == ("a", ["a"])


def test_a_few_bytes_are_some(monkeypatch):
    assert chosen(monkeypatch, ["a", "b"], {"a": 8, "b": 0}) == ("b", ["a", "b"])


def test_another_is_tried_until_one_fits(monkeypatch):
    spilled = {"a": 400, "b": 40, "c": 0, "d": 0}
    assert chosen(monkeypatch, ["a", "b", "c", "d"], spilled) == ("c", ["a", "b", "c"])


def test_the_cheapest_is_used_not_the_last(monkeypatch):
    """What fits may take longer than what does not."""
    found = chosen(monkeypatch, ["a", "b"], {"a": 40, "b": 0}, costs={"a": 1.0, "b": 2.0})
    assert found == ("a", ["a", "b"])


def test_no_more_than_a_few_are_compiled(monkeypatch):
    spilled = {name: 100 - n for n, name in enumerate("abcdefgh")}
    assert chosen(monkeypatch, list("abcdefgh"), spilled) == ("f", list("abcdef"))


def test_a_plan_that_comes_again_ends_it(monkeypatch):
    assert chosen(monkeypatch, ["a", "b", "a", "c"], {"a": 40, "b": 60}) == ("a", ["a", "b"])


def test_a_wrong_plan_is_not_used_however_fast(monkeypatch):
    assert chosen(monkeypatch, ["a", "b"], {"a": 40, "b": 0}, wrong="b") == ("a", ["a", "b"])
    with pytest.raises(Refused, match="a"):
        chosen(monkeypatch, ["a", "b"], {"a": 0}, wrong="a")


def test_without_a_binary_another_is_planned(monkeypatch):
    spilled = {"a": math.inf, "b": 0}
    assert chosen(monkeypatch, ["a", "b"], spilled, wrong="a") == ("b", ["a", "b"])
    with pytest.raises(Refused, match="a"):
        chosen(monkeypatch, ["a", "b"], {"a": math.inf, "b": math.inf}, wrong="ab")
