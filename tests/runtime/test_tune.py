"""Settings of a launch: the plan's unless timing was asked for, then the fastest, and remembered."""

import pytest
import torch

from tenfuse.plan.tiles.kernel import TileKernel, Tiling
from tenfuse.plan.tiles.settings import bucket, settings
from tenfuse.runtime import tune
from tenfuse.step.program import Builder, CarrySpec, StepProgram

SIZE = (64, 4096)


def kernel(warps=4):
    build = Builder()
    h, x = build.input("carry", 0, ("a",)), build.input("stream", 0, ("a",))
    nodes = build.call("add", h, x)
    program = StepProgram(tuple(build.nodes), {"a": 16}, (CarrySpec(("a",), nodes, ("a",)),), ())
    return TileKernel(program, (), Tiling((("a", 16),), warps=warps))


class Card:
    """Launches that fill one result; ``cost`` is what the clock says of a setting."""

    def __init__(self, monkeypatch, cost=None, wrong=(), broken=()):
        self.cost, self.wrong, self.broken = cost or {}, wrong, broken
        self.result, self.launched, self.timed = torch.zeros(8), [], []
        monkeypatch.setattr(tune, "_seconds", self.seconds)
        monkeypatch.setattr(tune, "architecture", lambda device: "a card")

    def launch(self, setting):
        if setting in self.broken:
            raise RuntimeError("out of resources")
        self.launched.append(setting)
        self.result.fill_(2.0 if setting in self.wrong else 1.0)

    def seconds(self, call):
        call()
        self.timed.append(self.launched[-1])
        return self.cost.get(self.launched[-1], 1.0)

    def setting(self, size=SIZE, source="text"):
        return tune.setting(kernel(), source, size, self.launch, [self.result])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TENFUSE_TUNE", "1")


def test_few_settings_and_the_plans_first():
    found = settings(kernel())
    assert found[0] == (4, 1) and len(set(found)) == len(found) <= 5
    assert all(1 <= warps <= 16 for k in (kernel(1), kernel(16)) for warps, _ in settings(k))


def test_without_timing_the_plans_is_taken(monkeypatch):
    monkeypatch.delenv("TENFUSE_TUNE")
    card = Card(monkeypatch, {(8, 1): 0.1})
    assert card.setting() == (4, 1) and not card.launched


def test_the_fastest_is_taken_and_timed_once(monkeypatch):
    card = Card(monkeypatch, {(8, 1): 0.1})
    assert card.setting() == (8, 1)
    assert sorted(card.timed) == sorted(settings(kernel()))
    again = Card(monkeypatch)
    monkeypatch.delenv("TENFUSE_TUNE")
    assert again.setting() == (8, 1) and not again.launched


def test_another_size_or_text_is_another_question(monkeypatch):
    Card(monkeypatch, {(8, 1): 0.1}).setting()
    for change in ({"size": (128, 4096)}, {"source": "other"}):
        assert Card(monkeypatch, {(2, 1): 0.1}).setting(**change) == (2, 1)


def test_a_setting_that_is_wrong_or_does_not_run_is_passed_over(monkeypatch):
    card = Card(monkeypatch, {(8, 1): 0.1, (2, 1): 0.2, (4, 2): 0.3}, wrong=[(8, 1)], broken=[(2, 1)])
    assert card.setting() == (4, 2)
    assert (8, 1) not in card.timed and (2, 1) not in card.timed


def test_nan_where_it_belongs_is_no_difference(monkeypatch):
    x = torch.tensor([1.0, float("nan"), 3.0])
    assert tune._alike(x, x.clone()) and not tune._alike(x, torch.tensor([1.0, 2.0, 3.0]))
    assert not tune._alike(torch.tensor([1.0, 2.0, float("nan")]), torch.ones(3))


def test_neighbouring_sizes_share_a_bucket():
    assert bucket(65, 33) == bucket(128, 64) != bucket(129, 64)
