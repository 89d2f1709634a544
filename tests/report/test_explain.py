"""``tenfuse.explain`` and ``tenfuse.reports`` on the whole path."""

import pytest
import torch

import tenfuse
from tenfuse.report.report import Report


def ema(x):
    h = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def ema_then_broken(x):
    y = ema(x)
    h = y[:, 0]
    for t in range(x.shape[1]):
        h = h * y[:, t].sum().item()
    return h


def matrix_of_the_state(x, u):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] + h @ u)
    return h


def noisy(x):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = torch.nn.functional.dropout(h, 0.5) + x[:, t]
    return h


def no_loop(x):
    return x.sin()


def line(function, offset):
    return function.__code__.co_firstlineno + offset


def test_a_fused_loop():
    report = tenfuse.explain(ema)(torch.randn(2, 12, 3))
    (loop,) = report.loops
    assert (loop.status, loop.span, loop.steps) == ("fused", f"test_explain.py:{line(ema, 3)}", 12)
    assert loop.lines and set(loop.lines) <= {line(ema, 3), line(ema, 4), line(ema, 5)}
    assert loop.form and loop.algorithm and loop.evidence and loop.kernels
    assert all(language == "cpp" and name and source for name, language, source in loop.kernels)
    assert "h = 0.5 * h + x[:, t]" in str(report) and "1 fused" in str(report)
    assert Report.from_json(report.to_json()) == report


def test_explain_takes_options_and_shows_graphs():
    report = tenfuse.explain(ema, graphs=True, strict=True)(torch.randn(2, 12, 3))
    ((before, after),) = report.graphs
    assert before.count(" = 0.5 * ") >= 12 and "torch.ops.tenfuse.loop" in after and "0.5" not in after
    with pytest.raises(tenfuse.config.OptionError):
        tenfuse.explain(ema, strickt=True)(torch.randn(2, 12, 3))


def test_ranges_where_the_normal_form_has_axes_of_its_own():
    (loop,) = tenfuse.explain(matrix_of_the_state, strict=True)(torch.randn(2, 5, 3), torch.eye(3)).loops
    assert (loop.status, loop.form) == ("fused", "nonlinear")


def test_explain_is_no_compilation():
    before = len(tenfuse.reports())
    tenfuse.explain(ema)(torch.randn(2, 12, 3))
    assert len(tenfuse.reports()) == before


def test_a_kept_loop_names_the_line():
    (loop,) = tenfuse.explain(noisy)(torch.randn(2, 12, 3)).loops
    assert (loop.status, loop.code) == ("kept", "TF201")
    assert loop.where == f"test_explain.py:{line(noisy, 3)}"
    assert loop.reason and loop.hint


def test_a_loop_that_breaks_the_graph_is_seen_too():
    report = tenfuse.explain(ema_then_broken)(torch.randn(2, 12, 3))
    broken = next(r for r in report.loops if r.status == "kept")
    assert (broken.code, broken.line) == ("TF120", line(ema_then_broken, 3))
    assert broken.where == f"test_explain.py:{line(ema_then_broken, 4)}"
    assert any(r.status == "fused" and r.line == line(ema, 3) for r in report.loops)


def test_no_loop():
    assert tenfuse.explain(no_loop)(torch.randn(3)).loops == ()


def test_reports_of_real_compilations_count_launches():
    torch._dynamo.reset()
    model = torch.compile(ema, backend="tenfuse", options={"inner": "eager", "strict": True})
    x = torch.randn(2, 12, 3)
    model(x)
    first = sum(tenfuse.reports()[-1].loops[0].launches)
    model(x)
    second = sum(tenfuse.reports()[-1].loops[0].launches)
    assert first >= 1 and second > first


def test_the_fixture_passes_only_when_fused(assert_fused):
    x = torch.randn(2, 12, 3)
    assert assert_fused(ema, x, loops=1).fused
    with pytest.raises(AssertionError, match="1 loops were fused, 2 expected"):
        assert_fused(ema, x, loops=2)
    with pytest.raises(AssertionError, match=r"(?s)1 of 1 loops were kept.*TF201"):
        assert_fused(noisy, x)
    with pytest.raises(AssertionError, match="no loop"):
        assert_fused(no_loop, x)
    with pytest.raises(AssertionError, match="expected"):
        assert_fused(ema, x, form="dense")
