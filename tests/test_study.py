"""What is known of a loop is found quickly, proved once, and kept."""

import time

import pytest

from reference import CASES
from tenfuse import study as module
from tenfuse.algebra.proof.certify import Certificate
from tenfuse.study import study, told
from tests.algebra.cores import reads_of

CARRIED = [c for c in CASES if c.kind == "carry"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("case", CARRIED, ids=lambda c: c.name)
def test_analysis_and_proof_take_less_than_two_seconds(case, tmp_path, monkeypatch):
    """On a core that others do not slow down: the fastest of three."""
    model, inputs = case.make(5)

    def seconds(step, graph, attempt):
        monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path / str(attempt)))
        start = time.thread_time()
        known = study(step, graph)
        assert known.split.proved, known.split.note
        assert known.ranges is not None
        assert not [c.note for c in (known.chunk, known.adjoint) if c.unfinished]
        return time.thread_time() - start

    for step, graph in reads_of(model, *inputs)[:1]:
        assert any(seconds(step, graph, attempt) < 2.0 for attempt in range(3))


def gated(case_name="delta/gated"):
    model, inputs = next(c for c in CASES if c.name == case_name).make(5)
    ((step, graph),) = reads_of(model, *inputs)
    return study(step, graph)


def test_a_proof_is_found_once(monkeypatch):
    first = gated()
    assert first.split.proved and first.chunk.proved and first.adjoint.proved

    def again(*args):
        raise AssertionError("proved again")

    for name in ("certify", "certify_chunk", "certify_adjoint"):
        monkeypatch.setattr(module, name, again)
    second = gated()
    assert (second.split, second.chunk, second.adjoint) == (first.split, first.chunk, first.adjoint)
    assert second.certified(8, gradients=True)


def test_what_was_not_proved_is_tried_again(monkeypatch):
    given_up = Certificate(False, "claim", (), 1.5, 9, "it takes more")
    monkeypatch.setattr(module, "certify", lambda *args: given_up)
    assert not gated().split.proved and not gated().certified(1, gradients=False)
    assert told(given_up) == "not proved: claim (it takes more)"
    monkeypatch.undo()
    assert gated().split.proved


def test_ranges_come_from_what_computes_the_gates():
    assert "a non-negative" in gated().ranges
