"""Launches that a CUDA graph can record: nothing waits for the device, nothing is read back."""

import contextlib

import pytest
import torch
from gpuharness import DRY, STEPS, check, compiled, eager, judged, made, results, sized

SIZE = (4, 1024, 4, 64)
NAMES = ["gated", "selective", "gla", "gated delta", "lstm"]
card = pytest.mark.skipif(DRY, reason="there is no card")


@contextlib.contextmanager
def no_waiting():
    """Anything that makes the host wait for the device raises."""
    if DRY:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def right(step, inputs, found):
    dtype = inputs.streams[0].dtype
    rows = judged(found, eager(step, inputs, dtype), eager(step, inputs, torch.float64), dtype)
    assert not [str(row) for row in rows if not row.error <= row.limit]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits(name):
    step = STEPS[name]
    inputs = made(step, sized(*SIZE), torch.float32)
    run = compiled(step, inputs=inputs)
    results(run, inputs)
    with no_waiting():
        carry, y = run(inputs.carry, inputs.streams, inputs.constants)
        found = torch.autograd.grad(
            [*carry, y], inputs.streams, [*map(torch.ones_like, carry), torch.ones_like(y)]
        )
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("name", NAMES)
def test_reduce_overhead(name):
    """Inductor records CUDA graphs around the kernels; later calls replay them."""
    step = STEPS[name]
    inputs = made(step, sized(*SIZE), torch.float32)
    counters = torch._dynamo.utils.counters["inductor"]
    skipped = counters["cudagraph_skips"]
    run = compiled(step, inputs=inputs, inner="inductor", **{"inductor.triton.cudagraphs": True})
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        found = {k: x.clone() for k, x in results(run, inputs).items()}
        right(step, inputs, found)
        for x in inputs.streams:
            x.data.mul_(0.9)
    assert DRY or counters["cudagraph_skips"] == skipped


@card
@pytest.mark.parametrize("name", NAMES)
def test_recorded_and_replayed(name):
    """Forward and backward in a graph recorded by hand; a replay reads the tensors as they are then."""
    step = STEPS[name]
    inputs = made(step, sized(*SIZE), torch.float32)
    run = compiled(step, inputs=inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            results(run, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        carry, y = run(inputs.carry, inputs.streams, inputs.constants)
        values = (*carry, y)
        leaves = (*inputs.carry, *inputs.streams, *inputs.constants)
        grads = torch.autograd.grad(values, leaves, tuple(torch.ones_like(x) for x in values))
    before = [x.clone() for x in (*values, *grads)]
    for x in inputs.streams:
        x.data.mul_(0.9)
    graph.replay()
    after = [x.clone() for x in (*values, *grads)]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    carry, y = run(inputs.carry, inputs.streams, inputs.constants)
    values = (*carry, y)
    want = [*values, *torch.autograd.grad(values, leaves, tuple(torch.ones_like(x) for x in values))]
    for mine, theirs in zip(after, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@card
@pytest.mark.skipif(not DRY and torch.cuda.device_count() < 2, reason="needs two cards")
def test_tensors_on_another_card():
    step = STEPS["gated delta"]
    inputs = made(step, sized(*SIZE), torch.float32, device="cuda:1")
    with torch.cuda.device(0):
        found = results(compiled(step, inputs=inputs), inputs)
    assert all(x.device.index == 1 for x in found.values())
    right(step, inputs, found)


@card
def test_memory_is_that_of_the_plan():
    """Between calls nothing is held but what the caller holds."""
    step = STEPS["gated delta"]
    inputs = made(step, sized(*SIZE), torch.bfloat16)
    run = compiled(step, inputs=inputs)
    results(run, inputs)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        results(run, inputs)
    assert torch.cuda.memory_allocated() == held


def test_the_verdict_is_kept(tmp_path, monkeypatch):
    """The first use tries the kernels, the second does not."""
    from tenfuse.runtime import canary, tiled

    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(canary, "_known", {})
    monkeypatch.setattr(canary, "INTERPRETED", DRY)
    seen, real = [], canary._tried
    monkeypatch.setattr(canary, "_tried", lambda *a: seen.append(real(*a)) or seen[-1])
    for _ in range(2):
        monkeypatch.setattr(tiled, "_prepared", {})
        check(STEPS["gated delta"], sized(*SIZE), torch.float32)
        monkeypatch.setattr(canary, "_known", {})
    assert seen == ["sound"]
