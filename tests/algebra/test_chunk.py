"""Chunk programs against the loop: low-rank recurrences."""

from itertools import chain

import pytest
import torch

from tenfuse.step import interpret
from tests.algebra.chunks import GATES, Errors, draw, run
from tests.algebra.drafts import DRAFTS


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("name", DRAFTS)
def test_runs_as_the_loop_does(name, gates):
    draft = DRAFTS[name]()
    program, recurrence = draft.program(), draft.recurrence()
    errors = Errors()
    for C in (4, 16, 64):
        for T in (1, C - 1, C, C + 1, 2 * C + 3):
            inputs = draw(program, T, draft.gates, gates)
            want = interpret.scan(program, *inputs, T)
            plain = interpret.scan(program, *inputs, T, dtype=torch.float32)
            for dtype in (torch.float32, torch.float64):
                got = run(program, recurrence, C, *inputs, T, dtype, block=4 if C == 16 else 16)
                if dtype == torch.float64:
                    torch.testing.assert_close(list(chain(*got)), list(chain(*want)), atol=1e-12, rtol=1e-10)
                else:
                    errors.add(list(chain(*got)), list(chain(*want)), list(chain(*plain)))
    errors.check()
