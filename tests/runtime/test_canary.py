"""A kernel that is wrong on the device at hand is found out at first use, and not used."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels are compiled for a card here", allow_module_level=True)
pytest.importorskip("triton")

from tenfuse.report.registry import recording
from tenfuse.runtime import bind, canary, tiled, tiles
from tenfuse.runtime.op import kernel_name

OPTIONS = {"strict": True, "inner": "eager", "target": "triton"}


def linear_attention(q, k, v):
    s = q.new_zeros(q.shape[0], k.shape[-1], v.shape[-1])
    ys = []
    for t in range(q.shape[1]):
        s = s + k[:, t, :, None] * v[:, t, None, :]
        ys.append((s * q[:, t, :, None]).sum(1))
    return torch.stack(ys, 1)


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    return [(0.3 * torch.randn(2, 9, n)).to(dtype).requires_grad_() for n in (3, 3, 4)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is known yet, of verdicts or kernels; the interpreter's kernels are tried too."""
    monkeypatch.setenv("TENFUSE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(canary, "INTERPRETED", True)
    monkeypatch.setattr(canary, "_known", {})
    monkeypatch.setattr(tiled, "_prepared", {})
    return tmp_path


@pytest.fixture
def tried(monkeypatch):
    """Steps per iteration of every plan that is tried."""
    seen, real = [], canary._tried
    monkeypatch.setattr(canary, "_tried", lambda plan, *rest: seen.append(plan.length) or real(plan, *rest))
    return seen


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(canary.log, "warning", lambda text, *args: lines.append(text % args))
    return lines


def chunks_wrong(monkeypatch, old="range(0, count", new="range(0, count - 1"):
    """Every kernel that runs a chunk at a time is emitted wrong: here without its last chunk."""
    real = tiles.emit
    monkeypatch.setattr(
        tiles, "emit", lambda kernel: real(kernel).replace(old, new) if kernel.length > 1 else real(kernel)
    )


def ran(model=linear_attention, args=None, **options):
    torch._dynamo.reset()
    args = args or inputs()
    with recording() as reports:
        found = torch.compile(model, backend="tenfuse", options={**OPTIONS, **options})(*args)
        found.sum().backward()
    return found, [loop for report in reports for loop in report.loops]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_right_kernels_are_used_and_not_tried_again(dtype, tried):
    for _ in range(2):
        _, (loop,) = ran(args=inputs(dtype))
        assert (loop.status, loop.algorithm) == ("fused", "chunked")
        assert any("what the step means in fp64, on the interpreter" in line for line in loop.evidence)
    assert tried == [16]


def test_trying_leaves_no_trace(tried):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    before = bind.launches.copy()
    args = inputs()
    torch.manual_seed(5)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(linear_attention, backend="tenfuse", options=OPTIONS)(*args)
    assert torch.equal(torch.rand(3), wanted)
    assert set((bind.launches - before).values()) == {1} and tried


def test_the_next_plan_is_taken(monkeypatch, tried, logged):
    """Behind one whose kernel is wrong."""
    chunks_wrong(monkeypatch)
    found, (loop,) = ran()
    torch.testing.assert_close(found, linear_attention(*inputs()))
    assert (loop.status, loop.algorithm) == ("fused", "sequential")
    assert tried == [16, 1]
    assert len(logged) == 1 and "quarantined" in logged[0] and "\n" not in logged[0]
    ran()
    assert tried == [16, 1]


def test_smaller_tiles_are_tried_where_a_kernel_does_not_compile(monkeypatch, tried, logged):
    """As long as they differ; then the next plan."""
    chunks_wrong(monkeypatch, new="range(0, count, unknown")
    found, (loop,) = ran()
    torch.testing.assert_close(found, linear_attention(*inputs()))
    assert (loop.status, loop.algorithm) == ("fused", "sequential")
    count = len(tried)
    assert 2 < count < 6 and tried == [16] * (count - 1) + [1]
    assert len(logged) == count - 1 and all("quarantined" in line for line in logged)
    ran()
    assert len(tried) == count


def test_what_a_binary_puts_away_is_known_in_the_next_process(monkeypatch):
    """The plan of which less is put away is used, and found again without a trial."""
    real, put = tiles.TileLauncher._launch, {}

    def launch(self, *args):
        real(self, *args)
        if self.kernel.length > 1:
            # Whatever is tried first does not fit, and all else does.
            self.spilled = put.setdefault(self.kernel.key, 0.0 if put else 4000.0)

    monkeypatch.setattr(tiles.TileLauncher, "_launch", launch)
    _, (loop,) = ran()
    monkeypatch.setattr(canary, "_known", {})
    monkeypatch.setattr(canary, "_tried", lambda *a: 1 / 0)
    _, (again,) = ran()
    assert len(put) > 2 and loop.kernels == again.kernels
    names = [name for name, _, _ in loop.kernels]
    kernels = [x.kernel for (key, role, _), x in tiled._prepared.items() if kernel_name(key, role) in names]
    assert len(kernels) == len(names) and all(put[k.key] == 0.0 for k in kernels)


def test_a_loop_without_a_sound_kernel_is_kept(monkeypatch, tried):
    real = tiles.emit
    monkeypatch.setattr(
        tiles, "emit", lambda kernel: real(kernel).replace("range(0, count)", "range(1, count)")
    )
    found, (loop,) = ran()
    torch.testing.assert_close(found, linear_attention(*inputs()))
    assert (loop.status, loop.code) == ("kept", "TF404") and "failed its check" in loop.reason
    assert tried == [16, 1]


def test_only_the_gradient_is_wrong(monkeypatch, tried):
    real = tiles.emit

    def emit(kernel):
        return (
            real(kernel).replace("range(0, count)", "range(1, count)") if kernel.descending else real(kernel)
        )

    monkeypatch.setattr(tiles, "emit", emit)
    _, (loop,) = ran()
    assert loop.code == "TF404" and "gradient of" in loop.reason


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 0.01), (torch.bfloat16, 0.5)])
@pytest.mark.parametrize("which", [("out", 0), ("gradient of streams", 1)])
def test_one_wrong_entry_is_seen(dtype, off, which, monkeypatch):
    """``off`` of the values' size."""
    real = canary.Sample.found

    def found(sample, drawn):
        values = real(sample, drawn)
        value = values[which].double().contiguous()
        value.view(-1)[3] += off * value.square().mean().sqrt()
        return values | {which: value.to(values[which].dtype)}

    monkeypatch.setattr(canary.Sample, "found", found)
    _, (loop,) = ran(args=inputs(dtype), chunk=1)
    assert loop.code == "TF404" and f"{which[0]} {which[1]} is off" in loop.reason


def test_a_later_process_remembers(tmp_path, monkeypatch, tried):
    chunks_wrong(monkeypatch)
    ran()
    again = textwrap.dedent("""
        import pytest
        from tests.runtime import test_canary as t

        patch = pytest.MonkeyPatch()
        patch.setattr(t.canary, "INTERPRETED", True)
        t.chunks_wrong(patch)
        patch.setattr(t.canary, "_tried", lambda *a: 1 / 0)
        print(t.ran()[1][0].algorithm)
    """)
    done = subprocess.run(
        [sys.executable, "-c", again], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.stdout.split() == ["sequential"], done.stderr
    assert tried == [16, 1]


def test_no_memory_is_no_verdict(monkeypatch, tried):
    def full(*args):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(canary.Sample, "found", full)
        _, (loop,) = ran()
    assert loop.algorithm == "chunked"
    ran()
    assert tried == [16, 16]


def test_nothing_is_tried_while_a_graph_is_recorded(monkeypatch, tried):
    """But what is known to be sound is used."""
    with monkeypatch.context() as patch:
        patch.setattr(canary, "recording", lambda: True)
        _, (loop,) = ran()
        assert (loop.status, loop.code, tried) == ("kept", "TF404", [])
        assert "before a CUDA graph was recorded" in loop.reason
    assert ran()[1][0].status == "fused"
    with monkeypatch.context() as patch:
        patch.setattr(canary, "recording", lambda: True)
        assert ran()[1][0].status == "fused"


def test_explain_runs_nothing(tried):
    import tenfuse

    torch._dynamo.reset()
    with tenfuse.config.patch(target="triton"):
        (loop,) = tenfuse.explain(linear_attention)(*inputs()).loops
    assert loop.status == "fused" and not tried


def complex_scan(x, a, z):
    ys = []
    for t in range(x.shape[1]):
        z = a * z + x[:, t]
        ys.append(z)
    return torch.stack(ys, 1).real


def masked(x, keep, h):
    ys = []
    for t in range(x.shape[1]):
        h = torch.where(keep[:, t], h, 0.0) * 0.9 + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


def twice(x):
    """One tensor read along two axes."""
    s, ys = x.new_zeros(x.shape[0], 3, 3), []
    for t in range(x.shape[1]):
        s = 0.9 * s + x[:, t, :, None] * x[:, t, None, :]
        ys.append(s.sum(1))
    return torch.stack(ys, 1)


def test_complex_masks_and_tensors_read_twice(tried):
    torch.manual_seed(0)
    pairs = [torch.randn(s, dtype=torch.complex64).requires_grad_() for s in ((2, 5, 3), (3,), (2, 3))]
    truths = [torch.randn(2, 5, 3).requires_grad_(), torch.rand(2, 5, 3) > 0.5, torch.randn(2, 3)]
    for model, args in (
        (complex_scan, pairs),
        (masked, truths),
        (twice, [torch.randn(2, 5, 3).requires_grad_()]),
    ):
        _, loops = ran(model, args, chunk=1)
        assert [loop.status for loop in loops] == ["fused"], model
    assert len(tried) >= 3
