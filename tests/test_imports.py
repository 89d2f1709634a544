"""The import rules of the design: who may know about whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tenfuse
from tenfuse.tools.codes import table

ROOT = Path(tenfuse.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
STAGES = ("capture", "step", "algebra", "plan", "emit", "runtime", "rewrite")
"""In the order of the path."""

IR = {
    "tenfuse.capture.loop", "tenfuse.step.program", "tenfuse.step.functions", "tenfuse.step.whole",
    "tenfuse.algebra.recurrence", "tenfuse.plan.plan", "tenfuse.plan.kernel", "tenfuse.plan.tiles.kernel",
}  # fmt: skip
"""The frozen types handed from stage to stage, and the table of functions they name."""

BORDERS = {
    "algebra/names.py": {"tenfuse.step.tensors"},
    "algebra/chunks/ragged.py": {"tenfuse.step.ordered"},
    "emit/triton/values.py": {"tenfuse.plan.tiles.schedule"},
    "plan/choose.py": {"tenfuse.algebra.chunks.chunk", "tenfuse.algebra.parts"},
    "plan/chunked.py": {"tenfuse.algebra.chunks.chunk", "tenfuse.algebra.rebuild"},
    "plan/core.py": {"tenfuse.algebra.parts"},
    "plan/tiles/inverse.py": {"tenfuse.algebra.parts"},
    "plan/keep.py": {"tenfuse.step.adjoint"},
    "plan/loop.py": {"tenfuse.step.adjoint", "tenfuse.step.axes", "tenfuse.step.reader"},
    "plan/operands.py": {"tenfuse.step.adjoint", "tenfuse.step.reader"},
    "plan/tensors.py": {"tenfuse.step.reader"},
    "plan/tiles/passes.py": {"tenfuse.algebra.parts"},
    "plan/product.py": {"tenfuse.step.adjoint"},
    "plan/tiles/stepped.py": {"tenfuse.algebra.chunks.chunk", "tenfuse.algebra.chunks.ragged"},
    "plan/tiles/plan.py": {"tenfuse.step.adjoint"},
    "runtime/matrices.py": {"tenfuse.plan.loop"},
    "runtime/backward.py": {"tenfuse.plan.loop", "tenfuse.plan.product", "tenfuse.plan.tensors"},
    "runtime/totals.py": {"tenfuse.plan.loop", "tenfuse.step.adjoint"},
    "runtime/bind.py": {
        "tenfuse.plan.loop", "tenfuse.plan.tensors", "tenfuse.plan.tiles.plan", "tenfuse.step.reader",
    },
    "runtime/canary.py": {
        "tenfuse.plan.canonical", "tenfuse.plan.tensors", "tenfuse.plan.tiles.plan",
        "tenfuse.plan.tiles.settle",
    },
    "runtime/forward.py": {"tenfuse.plan.loop"},
    "runtime/compile.py": {"tenfuse.emit.cpp.isa"},
    "runtime/launch.py": {"tenfuse.emit.cpp", "tenfuse.emit.cpp.source"},
    "runtime/sequence.py": {"tenfuse.emit.cpp.sequence"},
    "runtime/sample.py": {
        "tenfuse.plan.tensors", "tenfuse.plan.tiles.plan",
        "tenfuse.step.axes", "tenfuse.step.interpret", "tenfuse.step.reader",
    },
    "runtime/tiled.py": {"tenfuse.plan.tiles.plan", "tenfuse.step.adjoint"},
    "runtime/tiles.py": {"tenfuse.emit.triton", "tenfuse.plan.tiles.settings"},
    "runtime/tune.py": {"tenfuse.plan.tiles.settings"},
    "rewrite/assemble.py": {
        "tenfuse.plan.choose", "tenfuse.plan.loop", "tenfuse.plan.tensors", "tenfuse.plan.tiles.plan",
        "tenfuse.step.fission", "tenfuse.step.normalize", "tenfuse.step.reader",
    },
    "rewrite/evaluate.py": {"tenfuse.step.normalize"},
    "rewrite/launch.py": {
        "tenfuse.plan.choose", "tenfuse.plan.loop", "tenfuse.plan.tensors", "tenfuse.plan.tiles.plan",
        "tenfuse.plan.tiles.settle", "tenfuse.runtime.op", "tenfuse.step.reader",
    },
    "rewrite/wants.py": {"tenfuse.step.normalize"},
    "rewrite/chunked.py": {
        "tenfuse.plan.chunked", "tenfuse.plan.core", "tenfuse.plan.loop", "tenfuse.plan.tensors",
        "tenfuse.runtime.op", "tenfuse.step.batched", "tenfuse.step.reader",
    },
    "rewrite/join.py": {"tenfuse.capture.record"},
    "rewrite/lower.py": {"tenfuse.capture.record"},
    "rewrite/region.py": {"tenfuse.capture.record"},
    "rewrite/splice.py": {"tenfuse.capture.record"},
    "rewrite/tree.py": {"tenfuse.capture.record"},
}  # fmt: skip
"""Every other crossing from a stage into an earlier one; a new one is a decision."""

EDITS = {"erase_node", "replace_all_uses_with", "replace_input_with", "inserting_before", "inserting_after"}
OWN_GRAPH = {
    "step/normalize.py", "step/choice.py", "step/picks.py", "step/purify.py", "step/matrices.py",
    "step/windows.py",
    "capture/ahead/replay.py",
    "capture/complete.py", "capture/detached.py", "capture/functional.py", "capture/growing.py",
    "capture/indexing.py", "capture/likened.py", "capture/record.py",
}  # fmt: skip
"""Edit graphs they have made themselves a moment before: nobody else holds those."""


def imported(path):
    """``(module, at the top level of the file)`` of every import."""
    tree = ast.parse(path.read_text())
    top = {id(n) for n in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", id(node) in top
            for alias in node.names:
                if (
                    (ROOT.parent / f"{node.module}.{alias.name}".replace(".", "/"))
                    .with_suffix(".py")
                    .exists()
                ):
                    yield f"{node.module}.{alias.name}", id(node) in top


def stage(path):
    first = path.relative_to(ROOT).parts[0]
    return first if first in STAGES else ""


STAGED = [p for p in FILES if p.relative_to(ROOT).parts[0] in STAGES]


@pytest.mark.parametrize("path", STAGED, ids=lambda p: str(p.relative_to(ROOT)))
def test_stages_do_not_import_each_other(path):
    own = f"tenfuse.{stage(path)}"
    allowed = {"tenfuse", "tenfuse.collector", "tenfuse.config", "tenfuse.reasons"} | IR
    allowed |= BORDERS.get(str(path.relative_to(ROOT)), set())
    packages = {name.rpartition(".")[0] for name in allowed}
    foreign = {
        name for name, _ in imported(path)
        if name.split(".")[0] == "tenfuse"
        and name not in allowed | packages
        and name != own
        and not name.startswith(f"{own}.")
    }  # fmt: skip
    assert not foreign


@pytest.mark.parametrize("path", STAGED, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_stage_imports_a_later_one(path):
    later = STAGES[STAGES.index(stage(path)) + 1 :]
    names = [name.split(".") for name, _ in imported(path)]
    assert not [name for name in names if name[0] == "tenfuse" and len(name) > 1 and name[1] in later]


@pytest.mark.parametrize(("package", "home"), [("triton", "runtime"), ("sympy", "algebra")])
def test_heavy_packages_stay_in_their_stage(package, home):
    users = {
        str(path.relative_to(ROOT)) for path in FILES
        if any(name.split(".")[0] == package for name, _ in imported(path))
    }  # fmt: skip
    assert {u for u in users if not u.startswith(f"{home}/")} == set()


def test_only_rewrite_edits_graphs():
    def edits(path):
        return {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)} & EDITS

    places = {str(path.relative_to(ROOT)) for path in FILES if edits(path)}
    assert {p for p in places - OWN_GRAPH if not p.startswith("rewrite/")} == set()


def test_nothing_below_imports_what_is_above():
    above = ("tenfuse.cli", "tenfuse.tools", "tenfuse.testing", "tenfuse.backend", "tenfuse.fuse")
    for path in FILES:
        if stage(path):
            assert not [name for name, _ in imported(path) if name.startswith(above)], path


PIPELINE = {"backend.py", "fuse.py", "account.py", "surroundings.py"}


def test_nothing_but_the_backend_swallows_an_error():
    """A broad ``except`` elsewhere translates what it caught, by raising, or says in a comment why not."""
    broad = []
    for path in FILES:
        if not stage(path) and path.name not in PIPELINE:
            continue
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            names = ast.unparse(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ""
            if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
                continue
            reason = "#" in text.splitlines()[node.lineno - 1]
            if not reason and (not names or "Exception" in names.split()):
                broad.append(str(path.relative_to(ROOT)))
    assert set(broad) <= {"backend.py"}


def test_importing_tenfuse_imports_next_to_nothing():
    code = "import sys, tenfuse, tenfuse.config, tenfuse.testing, tenfuse.testing.plugin; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "rich", "numpy", "sympy", "triton", "hypothesis"} & set(modules.split())


def test_the_table_of_codes_is_up_to_date():
    written = (ROOT.parent / "docs" / "reasons.md").read_text()
    assert written == table(), "run `make docs`"
