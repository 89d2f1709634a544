"""What a backward kernel asks memory for, and how it reads and sums: never felt in a value."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import programs
from gradients import derived

from tenfuse.emit.cpp.preamble import preamble
from tenfuse.runtime import launch
from tenfuse.runtime.compile import load


def texts(program, monkeypatch, steps=11, chunk=4, **options):
    """The kernels that a gradient takes, which is right."""
    found, emit = [], launch.emit
    monkeypatch.setattr(launch, "emit", lambda k, isa: found.append(emit(k, isa)) or found[-1])
    for name, mine, theirs in derived(program, steps, chunk, **options):
        scale = max(1.0, float(theirs.abs().max()))
        assert float((mine.double() - theirs).abs().max()) <= 3e-5 * scale, (name, scale)
    return found


@pytest.mark.parametrize("reverse", [False, True])
def test_the_next_checkpoint_is_asked_for_row_by_row(monkeypatch, reverse):
    saving, walking = texts(programs.delta(B=8, K=32, V=64), monkeypatch, reverse=reverse)
    assert "if (z > 0) {" in walking and "r < k * 8 + 8 && r < 32" in walking
    assert ", away);" in saving


def test_a_small_checkpoint_is_not_asked_for(monkeypatch):
    saving, walking = texts(programs.delta(B=8, K=8, V=16), monkeypatch)
    assert "if (z > 0) {" not in walking and ", away);" not in saving


def test_a_state_read_by_several_operations_is_loaded_once(monkeypatch):
    walking = texts(programs.delta(B=8, K=32, V=64), monkeypatch)[-1].split("static void run")[1]
    assert "once(ld(h0" in walking and "once(ld(c0" not in walking


@pytest.mark.parametrize(
    "compute,lanes", [("f32", 4), ("f32", 8), ("f32", 16), ("f64", 2), ("f64", 4), ("f64", 8)]
)
def test_sums_of_several_vectors_stand_in_the_first_lanes(compute, lanes):
    many = [1 << n for n in range(1, lanes.bit_length())]
    calls = []
    for n in many:
        rows = ", ".join(f"ld(x + {i} * W)" for i in range(n))
        calls.append(f"st(y, fold{n}({rows})); y += W;")
    # An array of pointers comes first in every kernel's arguments, which is all that is read here.
    source = (
        preamble(compute, lanes)
        + 'extern "C" int kernel(char* const* P, const int64_t*, const int64_t*, int64_t, int) {\n'
        + "const T* x = (const T*)P[0]; T* y = (T*)P[1];\n"
        + "\n".join(calls)
        + "\nreturn 0; }\n"
    )
    dtype = torch.float64 if compute == "f64" else torch.float32
    x = torch.arange(lanes * lanes, dtype=dtype).square().remainder(97).view(lanes, lanes)
    y = torch.zeros(len(many), lanes, dtype=dtype)
    places = (ctypes.c_void_p * 2)(x.data_ptr(), y.data_ptr())
    assert load(source)(places, None, None, 0, 1) == 0
    for n, row in zip(many, y, strict=True):
        assert torch.equal(row.view(-1, n), x[:n].sum(1).expand(lanes // n, n))
