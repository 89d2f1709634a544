"""Of two chunks that could be run the one whose steps take less time is tried first."""

import dataclasses

import pytest

from tenfuse.plan.tiles import settle
from tenfuse.plan.tiles.settle import faster_first


@dataclasses.dataclass(frozen=True)
class Plan:
    length: int
    time: float
    spilled: float = 0.0


def order(plans, monkeypatch):
    monkeypatch.setattr(settle, "_step", lambda plan: plan.time)
    monkeypatch.setattr(settle, "_overflow", lambda plan: plan.spilled)
    return [told for told, _ in faster_first((str(p.length), p) for p in plans)]


@pytest.mark.parametrize(
    "times, found",
    [
        ((10, 5), ["32", "64", "16", "1"]),
        ((10, 9.5), ["64", "32", "16", "1"]),
        ((5, 10), ["64", "32", "16", "1"]),
    ],
)
def test_a_shorter_chunk_must_gain_a_tenth(times, found, monkeypatch):
    plans = [Plan(64, times[0]), Plan(32, times[1]), Plan(16, 0.1), Plan(1, 0.1)]
    assert order(plans, monkeypatch) == found


@pytest.mark.parametrize("long, short, found", [(0, 1, "64"), (1, 1, "32"), (2, 1, "32"), (0, 0, "32")])
def test_a_shorter_chunk_spills_no_more(long, short, found, monkeypatch):
    assert order([Plan(64, 10, long), Plan(32, 5, short)], monkeypatch)[0] == found


@pytest.mark.parametrize("lengths", [(64, 1), (16, 1), (1,), ()])
def test_single_steps_stay_behind_chunks(lengths, monkeypatch):
    assert order([Plan(n, float(n)) for n in lengths], monkeypatch) == [str(n) for n in lengths]


def test_the_shortest_chunk_is_not_waited_for():
    def plans():
        yield "16", Plan(16, 1.0)
        raise AssertionError("a plan was made that nobody needs")

    assert next(faster_first(plans())) == ("16", Plan(16, 1.0))
