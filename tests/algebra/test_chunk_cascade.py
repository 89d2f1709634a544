"""Chunk programs of recurrences that read an earlier recurrence's states."""

import pytest

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.algebra.parts import feeding, reached
from tenfuse.step.program import Scan, Shift, Solve
from tests.algebra.cascades import CASCADES, CURVED
from tests.algebra.chunks import GATES
from tests.algebra.loops import program_of
from tests.algebra.test_chunk import agrees
from tests.algebra.test_chunk_adjoint import agrees as adjoint_agrees


def in_sequence(program):
    """The nodes along the positions of a chunk that lie between two states."""
    inside = feeding(program) & reached(program, ("carry",))
    return [n for i, n in enumerate(program.nodes) if i in inside and isinstance(n, (Scan, Shift, Solve))]


@pytest.mark.parametrize("name", CASCADES)
def test_no_scan_reads_a_state(name):
    program, _ = program_of(name, CASCADES)
    recurrence = analyse(program)
    assert len(recurrence.stages) > 1
    for length in (1, 4):
        assert not in_sequence(chunk(program, recurrence, length, 2).program)


@pytest.mark.parametrize("name", CASCADES)
def test_states_and_gradients_are_those_of_the_loop(name):
    program, gates = program_of(name, CASCADES)
    recurrence = analyse(program)
    agrees(program, recurrence, gates, "zero", chunks=(4,), block=2)
    adjoint_agrees(program, recurrence, gates, "zero", ((4, 3), (4, 11)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("name", CASCADES)
def test_whatever_the_gates_and_the_chunk(name, kind):
    program, gates = program_of(name, CASCADES)
    recurrence = analyse(program)
    agrees(program, recurrence, gates, kind, (4, 16), block=4)
    adjoint_agrees(program, recurrence, gates, kind, ((4, 1), (4, 11), (16, 35)))


@pytest.mark.parametrize("name", CURVED)
def test_what_is_not_linear_in_the_earlier_states(name):
    """Right, but with scans in sequence: a plan does not take it."""
    program, gates = program_of(name, CURVED)
    recurrence = analyse(program)
    assert in_sequence(chunk(program, recurrence, 4, 2).program)
    agrees(program, recurrence, gates, "zero", chunks=(4,), block=2)
    adjoint_agrees(program, recurrence, gates, "zero", ((4, 11),))
