"""What of a chunk is sequential, and what it costs."""

import pytest

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.algebra.parts import parts
from tenfuse.step.adjoint import adjoint
from tests.algebra import loops
from tests.step.steps import analysed, sizes

K, V, C = 32, 48, 64
STATE, KEY, VALUE, HEAD = (1, 1, K, V), (1, 1, K), (1, 1, V), (1, 1)


def both(step, *streams):
    program = analysed(step, sizes(STATE), sizes(*streams), [])[2].program
    made = chunk(program, analyse(program), C).program
    back = adjoint(made, list(made.inputs("stream")), []).program
    return [parts(made), parts(back)]


def test_the_core_of_the_delta_rule_is_two_products_each_way():
    for found in both(loops.delta, KEY, KEY, VALUE, HEAD, HEAD):
        assert found.core.matmul == 2 * (2 * C * K * V)
        assert found.core.other < 4 * (K * V + C * V)
        assert found.core.read >= K * V


def test_the_core_of_two_delta_writes_has_twice_that():
    for found in both(loops.product, KEY, KEY, VALUE, HEAD, KEY, VALUE, HEAD, HEAD):
        assert found.core.matmul == 4 * (2 * C * K * V)


@pytest.mark.parametrize("gate", [KEY, (1,)])
def test_without_an_erase_the_core_is_elementwise(gate):
    step = loops.gated if gate == KEY else loops.retnet
    for found in both(step, KEY, KEY, VALUE, gate):
        assert found.core.matmul == 0
        assert found.core.other <= 3 * K * V


def test_nothing_is_as_large_as_the_states_of_all_steps():
    """Pairs of positions, and states; ranks twice in each."""
    for rank, step, streams in (
        (1, loops.delta, (KEY, KEY, VALUE, HEAD, HEAD)),
        (2, loops.product, (KEY, KEY, VALUE, HEAD, KEY, VALUE, HEAD, HEAD)),
    ):
        for found in both(step, *streams):
            largest = max(found.before.largest, found.core.largest, found.after.largest)
            assert largest <= rank * rank * C * C


def test_every_node_is_in_one_part():
    program = analysed(loops.kda, sizes(STATE), sizes(KEY, KEY, VALUE, HEAD, KEY), [])[2].program
    made = chunk(program, analyse(program), C).program
    found = parts(made)
    together = [*found.once.nodes, *found.before.nodes, *found.core.nodes, *found.after.nodes]
    assert sorted(together) == list(range(len(made.nodes)))
    assert found.core.bytes(8) == 2 * found.core.bytes()
    assert isinstance(found.core.matmul, int)


def test_a_normaliser_goes_with_its_state():
    """It does not force the decays of all pairs of positions to be spelled out."""
    shapes = KEY, KEY, VALUE, KEY
    program = analysed(loops.normalised, sizes(STATE, KEY), sizes(*shapes), [])[2].program
    made = chunk(program, analyse(program), C)
    assert len(made.rows) == 2
    with_one, without = parts(made.program), both(loops.gated, *shapes)[0]
    assert with_one.before.matmul + with_one.after.matmul < 1.1 * (
        without.before.matmul + without.after.matmul
    )
    assert with_one.before.largest == without.before.largest


def test_powers_of_a_fixed_matrix_are_taken_once():
    program, _ = loops.program_of("resonance")
    found = parts(chunk(program, analyse(program), 16).program)
    k, count = 4, 2
    assert found.once.other >= 16 * 2 * (count * k) ** 3
    assert found.core.matmul + found.core.other < 16 * (count * k) ** 2 * 2
