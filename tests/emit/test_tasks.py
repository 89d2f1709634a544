"""How kernels are cut into tasks for the threads they are written for: never felt in a value."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gradients import derived
from harness import forward

from tenfuse.emit.cpp import AVX512, emit
from tenfuse.emit.cpp.settle import settle
from tenfuse.plan.kernel import Kernel
from tenfuse.runtime import launch
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def decayed(K, V, erase, batch=0):
    """S <- a*S + k v^T with a gate per key, or S <- S + k (v - k.S)^T; y = q.S."""
    b, many = Builder(), ("b",) if batch else ()
    own = (*many, "k", "v")
    s, q, k = b.input("carry", 0, own), *(b.input("stream", i, (*many, "k")) for i in (0, 1))
    v, a = b.input("stream", 2, (*many, "v")), b.input("stream", 3, (*many, "k"))
    if erase:
        held, small = s, b.call("mul", k, b.const(0.2))
        v = b.call("sub", v, b.contract(b.call("mul", small, s), "k"))
        k = b.call("mul", small, a)
    else:
        held = b.call("mul", b.call("sigmoid", a), s)
    new = b.call("add", held, b.call("mul", k, v))
    out = b.contract(b.call("mul", q, new), "k")
    sizes = {"k": K, "v": V} | ({"b": batch} if batch else {})
    return StepProgram(tuple(b.nodes), sizes, (CarrySpec(own, new, own),), (OutSpec(out, (*many, "v")),))


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("sizes", [(128, 128), (40, 137), (67, 48), (16, 16)])
@pytest.mark.parametrize("many", [1, 2, 8])
def test_gradients_for_any_number_of_threads(threads, erase, sizes, many):
    threads(many)
    for name, mine, theirs in derived(decayed(*sizes, erase), 7, 4):
        scale = max(1.0, float(theirs.abs().max()))
        assert float((mine.double() - theirs).abs().max()) <= 3e-5 * scale, (name, scale)


@pytest.mark.parametrize("style", ["plain", "reversed"])
@pytest.mark.parametrize("sizes", [(48, 40), (21, 64), (16, 33)])
def test_states_turned_between_the_layouts_of_tensor_and_kernel(style, sizes):
    (finals, outs, _), want, _ = forward(decayed(*sizes, False), 6, style=style, checkpoint=4)
    torch.testing.assert_close(finals[0].double(), want[0][0].double(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outs[0].double(), want[1][0].double(), atol=1e-5, rtol=1e-4)


def kept(monkeypatch, program):
    """The kernels that computing gradients launches."""
    found: list[Kernel] = []

    def recorded(kernel, isa):
        found.append(kernel)
        return emit(kernel, isa)

    monkeypatch.setattr(launch, "emit", recorded)
    derived(program, 3, 4)
    return found


def test_wide_rows_for_few_threads(monkeypatch, threads):
    """Tasks are as many as threads have use for: each cut narrows the rows that are summed over."""
    threads(1)
    for kernel in kept(monkeypatch, decayed(128, 128, True)):
        few, many = (settle(kernel, dataclasses.replace(AVX512, cores=n)).spaces for n in (2, 16))
        assert (few.axes["v"].extent, many.axes["v"].extent) == (32, 16)


def test_rows_with_shared_sums_are_cut_evenly_once_per_thread(monkeypatch, threads):
    """What tasks sum together each of them adds to at every step: no more tasks than threads."""
    threads(1)
    walked = next(k for k in kept(monkeypatch, decayed(128, 128, False)) if k.backward)
    isa = dataclasses.replace(AVX512, cores=2)
    assert settle(walked, isa).spaces.row == "k"
    text = emit(walked, isa)
    assert "free(shares)" in text and "int64_t want = (threads + tasks - 1) / tasks;" in text
    assert "if (want < least) want = (least + want - 1) / want * want;" in text


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 4, 11])
def test_tasks_that_share_most_take_turns_chunk_by_chunk(monkeypatch, threads, erase, steps):
    """Groups of such tasks, one per entry of the batch, split among threads at any place."""
    program = decayed(128, 128, erase, batch=3)
    for many in (1, 2, 5):
        threads(many)
        for name, mine, theirs in derived(program, steps, 4):
            scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
            assert bool(((mine.double() - theirs).abs() <= 3e-5 * scale).all()), (name, many)
    walked = [k for k in kept(monkeypatch, program) if k.backward]
    assert walked and all("int64_t turn)" in emit(k, AVX512) for k in walked)


def test_tasks_that_share_little_run_one_after_the_other(monkeypatch, threads):
    """A selective scan's rows share only two short vectors: turns would tear its streams apart."""
    threads(1)
    b, own = Builder(), ("d", "n")
    s, x = b.input("carry", 0, own), b.input("stream", 0, own)
    a, c = b.input("stream", 1, own), b.input("stream", 2, ("n",))
    new = b.call("add", b.call("mul", a, s), x)
    out = b.contract(b.call("mul", c, new), "n")
    program = StepProgram(
        tuple(b.nodes), {"d": 256, "n": 16}, (CarrySpec(own, new, own),), (OutSpec(out, ("d",)),)
    )
    walked = [k for k in kept(monkeypatch, program) if k.backward]
    assert walked and not any("int64_t turn)" in emit(k, AVX512) for k in walked)
    assert all("free(shares)" in emit(k, AVX512) for k in walked)


@pytest.mark.parametrize("sizes", [(33, 48), (34, 48)])
def test_sums_of_two_rows_are_stored_at_once(monkeypatch, threads, sizes):
    """Of an odd number of rows the last one alone; in double precision one by one."""
    threads(1)
    walked = [k for k in kept(monkeypatch, decayed(*sizes, False)) if k.backward]
    assert walked and all("    st2(w" in emit(k, AVX512) for k in walked)
    for compute, tolerance in (("f32", 3e-5), ("f64", 1e-12)):
        for name, mine, theirs in derived(decayed(*sizes, False), 5, 2, compute):
            scale = max(1.0, float(theirs.abs().max()))
            assert float((mine.double() - theirs).abs().max()) <= tolerance * scale, (name, compute)
