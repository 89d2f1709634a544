"""Chunk programs against the loop, for every form, gate, length and chunk."""

from itertools import chain

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.step import interpret
from tests.algebra.chunks import GATES, Errors, draw, exact, run
from tests.algebra.drafts import DRAFTS
from tests.algebra.loops import LOOPS, program_of


def agrees(program, recurrence, gates, kind, chunks=(4, 16), block=4):
    errors = Errors()
    for C in chunks:
        for T in (1, C - 1, C, C + 1, 2 * C + 3):
            inputs = draw(program, T, gates, kind)
            want = interpret.scan(program, *inputs, T)
            plain = interpret.scan(program, *inputs, T, dtype=torch.float32)
            got = run(program, recurrence, C, *inputs, T, torch.float64, block=block)
            exact(list(chain(*got)), list(chain(*want)))
            got = run(program, recurrence, C, *inputs, T, torch.float32, block=block)
            errors.add(list(chain(*got)), list(chain(*want)), list(chain(*plain)))
    errors.check()


@pytest.mark.parametrize("name", DRAFTS)
def test_of_a_normal_form_written_by_hand(name):
    draft = DRAFTS[name]()
    agrees(draft.program(), draft.recurrence(), draft.gates, "zero", chunks=(4,), block=2)


@pytest.mark.parametrize("name", LOOPS)
def test_runs_as_the_loop_does(name):
    program, gates = program_of(name)
    agrees(program, analyse(program), gates, "zero", chunks=(4,), block=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("name", LOOPS)
def test_whatever_the_gates_and_the_chunk(name, kind):
    program, gates = program_of(name)
    # Where gates above one meet an erase, a long chunk takes the difference of large sums.
    chunks = (4, 16) if kind == "above" else (4, 16, 64)
    if kind == "ordinary" or gates:
        agrees(program, analyse(program), gates, kind, chunks, block=4)
