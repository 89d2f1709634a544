import json
import threading

import pytest

from tenfuse.capture.loop import Span
from tenfuse.reasons import RANDOM, refuse
from tenfuse.report import registry
from tenfuse.report.report import LoopReport, Report, short
from tenfuse.report.text import margin, to_text

SOURCE = """\
def f(x, h):
    for t in range(8):
        h = h * x[t]
        h = h + randn()
    return h
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    return str(path)


def fused(file, **more):
    return LoopReport.fused(
        Span(file, 2, (3, 4)), 8, form="elementwise", formula="h <- x*h", algorithm="sequential",
        kernels=(("k0", "cpp", "int a<b>;"), ("k1", "cpp", "")), evidence=("unrolled again",), **more,
    )  # fmt: skip


def kept(file):
    return LoopReport.kept(Span(file, 2, (3, 4)), 8, refuse(RANDOM, where=f"{file}:4").refusal)


def test_fields(file):
    loop = fused(file)
    assert (loop.status, loop.span, loop.steps, loop.form) == ("fused", "model.py:2", 8, "elementwise")
    loop = kept(file)
    assert (loop.status, loop.code, loop.where, loop.blocker) == ("kept", "TF201", "model.py:4", 4)
    assert loop.hint == RANDOM.remedy


def test_places_are_shortened():
    for place in ("/a/b/file.py:21", "file.py:21", "file.py:21: h = a / b: c", "/x/file.py:21: x = 'y:3'"):
        assert short(place) == "file.py:21"
    assert (short(""), short("/a/file.py"), short("<no source>")) == ("", "file.py", "<no source>")


def test_no_third_outcome(file):
    with pytest.raises(ValueError, match="'fused' or 'kept'"):
        LoopReport("skipped", "a.py:1", 3)
    with pytest.raises(ValueError, match="without a reason"):
        LoopReport("kept", "a.py:1", 3)


def test_json_round_trip(file):
    report = Report.of([kept(file), fused(file)], graphs=(("a", "b"),), breaks=("why",), model="m")
    assert Report.from_json(report.to_json()) == report
    body = json.loads(report.to_json())
    assert body["schema"] == 1
    assert body["loops"][1]["kernels"][0] == {"name": "k0", "language": "cpp", "source": "int a<b>;"}
    with pytest.raises(ValueError, match="schema"):
        Report.from_json('{"schema": 99}')


def test_source_order(file):
    late = LoopReport.fused(Span(file, 9), 3)
    assert [r.line for r in Report.of([late, fused(file)]).loops] == [2, 9]


def test_margin_marks_the_loop_and_the_line_at_fault(file):
    assert [n for n, _, _ in margin(kept(file))] == [1, 2, 3, 4, 5]
    assert [mark for _, _, mark in margin(kept(file))] == [" ", "╭", "│", "▶", " "]
    assert [mark for _, _, mark in margin(fused(file))] == [" ", "╭", "│", "╰", " "]


def test_text(file):
    text = str(Report.of([kept(file)]))
    assert "1 loop, 1 kept" in text
    assert "4 ▶         h = h + randn()" in text
    assert f"TF201: {RANDOM.cause}" in " ".join(text.split())
    text = str(Report.of([fused(file)]))
    for part in ("1 fused", "elementwise", "h <- x*h", "sequential", "2 in cpp", "unrolled again", "8 steps"):
        assert part in text
    assert "\x1b" not in text
    assert "int a<b>;" not in text
    assert "int a<b>;" in to_text(Report.of([fused(file)]), kernels=True)
    assert "no loop" in str(Report())


def test_a_report_outlives_the_file(file):
    loop = fused(file)
    open(file, "w").close()
    assert "h = h * x[t]" in str(Report.of([loop]))


def test_missing_source_is_not_an_error():
    loop = LoopReport.fused(Span("/nowhere/a.py", 5, (6,)), 3)
    assert "a.py:5" in str(Report.of([loop])) and loop.source == ()
    assert "<no source>" in str(Report.of([LoopReport.fused(Span("", 0), 3)]))


def test_html_is_escaped_and_complete(file):
    page = Report.of([fused(file), kept(file)], model="<script>").to_html()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert "int a&lt;b&gt;;" in page and "TF201" in page and "h &lt;- x*h" in page
    assert "http" not in page
    assert "2 loops seen, 1 fused, 1 kept." in page and "1 loop seen" in Report.of([kept(file)]).to_html()


def test_registry_is_newest_last_and_counts_live(file):
    launches = {"k0": 1}
    registry.record(Report.of([fused(file)], model="a"), launches)
    registry.record(Report.of([fused(file)], model="b"))
    launches["k0"] = 5
    older, newer = registry.reports()[-2:]
    assert (older.model, newer.model) == ("a", "b")
    assert (older.loops[0].launches, newer.loops[0].launches) == ((5, 0), (0, 0))
    assert "5 launches" in str(older)


def test_recording_hears_only_its_own(file):
    with registry.recording() as heard:
        registry.record(Report(model="mine"))
        other = threading.Thread(target=registry.record, args=(Report(model="other"),))
        other.start()
        other.join()
    registry.record(Report(model="later"))
    assert [r.model for r in heard] == ["mine"]
