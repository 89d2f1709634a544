"""Random recurrences are fused and right; their near misses are right."""

import pytest
from hypothesis import HealthCheck, given, settings

from tenfuse.testing.equivalence import assert_equivalent
from tenfuse.testing.strategies import mutants, programs


def profile(examples):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks,
        print_blob=True,
    )  # fmt: skip


def fused_and_right(program):
    result = assert_equivalent(program.load(), *program.inputs(), grad=program.grad)
    program.expect_fused(result.loops)


@profile(40)
@given(programs())
def test_programs(program):
    fused_and_right(program)


@profile(40)
@given(mutants())
def test_mutants(program):
    fused_and_right(program)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@profile(500)
@given(programs())
def test_many_programs(program):
    fused_and_right(program)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@profile(500)
@given(mutants())
def test_many_mutants(program):
    fused_and_right(program)
