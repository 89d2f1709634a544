"""Plans in chunks, whatever the machine."""

import pytest

from tenfuse import fuse
from tenfuse.algebra.chunks.chunk import Unchunkable
from tenfuse.plan.choose import ALGORITHMS, Choice, Cost, choose
from tenfuse.plan.chunked import ChunkPlan


@pytest.fixture
def chunks_of(monkeypatch):
    """Plan every loop that has a chunk program in chunks of so many steps."""

    def of(length):
        def chosen(program, recurrence, steps, cores, steady=True):
            alone = choose(program, recurrence, steps, cores)
            if recurrence is None or steps < 2 or (length > 1 and recurrence.form not in ALGORITHMS):
                return alone
            plan = ChunkPlan(program, recurrence, length)
            try:
                plan.core(length)
            except Unchunkable:
                return alone
            name = ALGORITHMS.get(recurrence.form, "sequential")
            return Choice(name, Cost(0, 0, 0, 0.0), plan)

        monkeypatch.setattr(fuse, "choose", chosen)

    return of
