"""Launches of kernels on tiles: named errors, and one compilation for every length."""

import functools
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels are compiled for a card here", allow_module_level=True)
pytest.importorskip("triton")

from tenfuse.report.registry import recording
from tenfuse.runtime import tiled, tiles
from tenfuse.runtime.device import architecture


def ema(x, a):
    h, ys = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a * h + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


def compiled():
    torch._dynamo.reset()
    return torch.compile(
        ema, backend="tenfuse", options={"strict": True, "inner": "eager", "target": "triton", "chunk": 1}
    )


def test_more_instances_than_a_card_can_start_are_named(monkeypatch):
    x, a = torch.randn(3, 5, 700), torch.rand(700)
    run = compiled()
    torch.testing.assert_close(run(x, a), ema(x, a))
    monkeypatch.setattr(tiles, "MOST", 1)
    with pytest.raises(ValueError, match="more than a card can start"):
        run(x, a)


def test_text_for_far_tensors_is_made_once(monkeypatch):
    """Tensors of 2 GB and more have offsets of 64 bits; what they are launched with is kept."""
    x, a = torch.randn(3, 5, 7), torch.rand(7)
    run, made, emit = compiled(), [], tiles.emit
    torch.testing.assert_close(run(x, a), ema(x, a))
    monkeypatch.setattr(tiles, "FAR", 1)
    monkeypatch.setattr(tiles, "emit", lambda kernel, far: made.append(far) or emit(kernel, far))
    for _ in range(3):
        torch.testing.assert_close(run(x, a), ema(x, a))
    assert made == [True]


def test_lengths_are_no_part_of_what_is_compiled():
    with recording() as reports:
        compiled()(torch.randn(2, 5, 3), torch.rand(3))
    (loop,) = [loop for report in reports for loop in report.loops]
    for _, language, text in loop.kernels:
        assert language == "triton" and '@triton.jit(do_not_specialize=["steps", "count"])' in text


def test_the_interpreter_is_no_card():
    """What it finds out must not be taken for the card's, whatever device the tensors are on."""
    assert architecture(torch.device("cpu")).startswith("the interpreter")
    assert architecture(torch.device("cuda", 0)).startswith("the interpreter")


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    """The folder of the cache is a file."""
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tiles, "load", functools.cache(tiles.load.__wrapped__))
    monkeypatch.setattr(tiled, "_prepared", {})
    x, a = torch.randn(3, 5, 7), torch.rand(7)
    torch.testing.assert_close(compiled()(x, a), ema(x, a))
