"""What a scan holds decides about its block and its warps, not its largest tile alone."""

import itertools

from tenfuse.plan.kernel import Operand
from tenfuse.plan.tiles.registers import HELD, peak
from tenfuse.plan.tiles.tiling import tiling
from tenfuse.step.program import Builder, OutSpec, Scan, StepProgram


def several(count):
    """Scans of ``count`` streams that are all held until their product: positions t, channels d."""
    b = Builder()
    decay = b.input("stream", 0, ("t", "d"))
    scans = [b.add(Scan("t", decay, b.input("stream", i + 1, ("t", "d")))) for i in range(count)]
    last = scans[0]
    for one in scans[1:]:
        last = b.call("mul", last, one)
    for one in scans:
        last = b.call("maximum", last, one)
    sizes = {"t": 64, "d": 65536}
    return StepProgram(tuple(b.nodes), sizes, (), (OutSpec(last, ("t", "d")),), frozenset())


def lies(program):
    operands = [Operand("stream", i, "f32", ("d",), "d") for i in program.inputs("stream")]
    return tiling(program, operands, ("t",))


def test_few_values_are_held_in_wide_blocks():
    found = dict(lies(several(1)).blocks)
    assert found == {"t": 64, "d": 64}


def test_many_values_are_held_in_narrow_blocks_by_as_many_threads():
    program = several(40)
    found = lies(program)
    blocks = dict(found.blocks)
    assert blocks["d"] < 64 and found.warps == 8
    assert peak(program, blocks, found.warps, "ieee") <= HELD
    assert peak(program, blocks | {"d": 2 * blocks["d"]}, found.warps, "ieee") > HELD


def test_what_a_compiler_does_not_keep_gets_more_warps_and_then_shorter_blocks():
    operands = (Operand("stream", 0, "bf16", ("d",), "d"),)
    program = several(1)
    found = [tiling(program, operands, ("t",), smaller=n) for n in range(6)]
    sizes = [(t.warps, dict(t.blocks)["d"]) for t in found]
    for (warps, block), (more, shorter) in itertools.pairwise(sizes):
        assert (more, shorter) in ((2 * warps, block), (warps, block // 2), (warps, block))
        assert shorter == block or warps == 8
    assert sizes[-1][0] == 8 and sizes[-1][1] < sizes[0][1]
