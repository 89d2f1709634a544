"""Every form of kernel compiles for cards that are not there, and the counting of bytes is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
RUN = """
import json, sys
import torch
from benchmarks import aot
from benchmarks.aot_loops import LOOPS

torch.set_num_threads(1)
case = next(c for c in LOOPS if c.name == sys.argv[1])
setting = tuple((dict(case.sizes[0]) | json.loads(sys.argv[2])).items())
found = [r for r in aot.rows(case, setting, case.dtypes[0], json.loads(sys.argv[3]))]
print("FOUND" + json.dumps(found))
"""


def rows(name, targets, **sizes):
    """The rows of one loop, made in a process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, name, json.dumps(sizes), json.dumps(targets)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found = next(line for line in run.stdout.splitlines() if line.startswith("FOUND"))
    return json.loads(found[len("FOUND") :])


def compiled(found, targets):
    """All kernels of all passes, each compiled for all targets that it is planned for."""
    assert {r["pass"] for r in found} == {"forward", "saving", "backward"}
    planned = {name: set() for name in ("forward", "saving", "backward")}
    for row in found:
        assert "failed" not in row, row
        assert row["ratio"] > 0
        if "same as" not in row:
            planned[row["pass"]] |= {b["target"] for b in row["binaries"]}
            for b in row["binaries"]:
                assert not b["failed"], (row["kernel"], b)
                assert b["registers"] > 0 and b["seconds"] > 0
        else:
            planned[row["pass"]] |= {*row["targets"]}
    assert all(found == {*targets} for found in planned.values())
    return [r for r in found if "binaries" in r]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EMA", "running max"])
def test_a_scan_compiles_for_every_card_without_spilling(name):
    found = compiled(rows(name, TARGETS, D=256), TARGETS)
    for row in found:
        for b in row["binaries"]:
            assert b["spilled"] == 0 and not b["matrix"], (row["kernel"], b)


@pytest.mark.slow
def test_a_chunked_loop_compiles_for_every_card_with_matrix_instructions():
    found = compiled(rows("scalar decay", TARGETS, H=2, d=64), TARGETS)
    kinds = {"sm_80": "mma.sync", "gfx942": "v_mfma"}
    for target, kind in kinds.items():
        binaries = [b for row in found for b in row["binaries"] if b["target"] == target]
        assert any(b["matrix"].get(kind) for b in binaries), target
    hopper = [b for row in found for b in row["binaries"] if b["target"] == "sm_90"]
    assert any(b["matrix"].get("wgmma.mma_async") or b["matrix"].get("mma.sync") for b in hopper)


@pytest.mark.slow
def test_a_sequential_loop_compiles_for_every_card():
    compiled(rows("GRU", TARGETS, d=16), TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("selective scan", {"D": 128}), ("rotation", {"D": 128}), ("vector decay", {"H": 2}),
        ("linear attention", {"H": 2, "d": 64}), ("scalar decay", {"H": 2, "d": 128}),
        ("read before", {"H": 2}), ("delta rule", {"H": 2}),
        ("gated delta rule", {"H": 2, "d": 64}), ("two-vector erase", {"H": 2}), ("dense", {"H": 2}),
        ("LSTM by heads", {"H": 2, "d": 32}),
    ],
)  # fmt: skip
def test_more_forms_compile_for_every_card(name, sizes):
    compiled(rows(name, TARGETS, **sizes), TARGETS)


@pytest.mark.slow
def test_what_does_not_compile_is_a_row_that_says_so():
    found = rows("EMA", ["sm_1"], D=64)
    binaries = [b for row in found for b in row.get("binaries", ())]
    assert binaries and all(b["failed"] for b in binaries)


def counted(operands, **options):
    from tenfuse.plan.tiles.kernel import TileKernel, Tiling
    from tenfuse.plan.tiles.traffic import moved
    from tenfuse.step.program import CarrySpec, Input, OutSpec, Pointwise, StepProgram

    nodes = (
        Input("carry", 0, ("a",)), Input("stream", 0, ("a",)), Input("invariant", 0, ("a", "b")),
        Pointwise("add", (0, 1)),
    )  # fmt: skip
    program = StepProgram(
        nodes, {"a": 8, "b": 6}, (CarrySpec(("a",), 3, ("a",)),), (OutSpec(3, ("a",)),), frozenset()
    )
    kernel = TileKernel(program, operands, Tiling((("a", 8), ("b", 2)), ("b",), ()), **options)
    return moved(kernel, 10)


def test_bytes_count_every_reload_and_every_step():
    from tenfuse.plan.kernel import Operand

    operands = (
        Operand("init", 0, "f32", ("a",), "a"), Operand("stream", 0, "bf16", ("a",), "a"),
        Operand("constant", 0, "f32", ("a", "b"), "b"), Operand("out", 0, "f32", ("a",), "a"),
    )  # fmt: skip
    blocks = 3
    expected = blocks * (8 * 4 + 10 * 8 * 2 + 10 * 8 * 4) + 8 * 6 * 4
    assert counted(operands) == expected
    # Iterations side by side read what does not change once each.
    together = blocks * (10 * 8 * 4 + 10 * 8 * 2 + 10 * 8 * 4) + 10 * 8 * 6 * 4
    assert counted(operands, parallel=True) == together
