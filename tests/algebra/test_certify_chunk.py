"""A chunk program is certified to be its steps; a wrong one never is."""

import dataclasses

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tenfuse.step import interpret
from tenfuse.step.adjoint import adjoint
from tenfuse.step.program import Input, Scan, Shift
from tests.algebra.loops import program_of
from tests.algebra.mutants import LINEAR, node_mutants
from tests.algebra.mutants import program as step_program
from tests.step.steps import sizes


@pytest.mark.parametrize("name", LINEAR)
def test_a_chunk_is_its_steps(name):
    program = step_program(name)
    found = certify_chunk(program, analyse(program))
    assert found.proved, found.note


def _means_the_same(program, node, i):
    """Whether a changed node makes no difference, to the interpreter on random numbers."""
    gen = torch.Generator().manual_seed(0)
    other = dataclasses.replace(program, nodes=(*program.nodes[:i], node, *program.nodes[i + 1 :]))
    inputs = {
        (n.kind, n.index): torch.rand([program.sizes[a] for a in n.axes], generator=gen, dtype=torch.float64)
        for n in program.nodes
        if isinstance(n, Input)
    }
    pairs = zip(
        *((x for part in interpret.step(p, inputs) for x in part) for p in (program, other)), strict=True
    )
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


_LONG = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("delta", "stabilised", "ten", "erased", "poured")
]


@pytest.mark.parametrize("name", ["merged-heads", "rotation", "chained", "before", *_LONG])
def test_no_mutant_of_a_chunk_program_is_proved(name):
    program = step_program(name)
    normal = analyse(program)
    made = []

    def right(*args):
        made.append(chunk(*args))
        return made[-1]

    assert certify_chunk(program, normal, make=right).proved
    good = made[2].program
    mutants = list(node_mutants(good.nodes))
    mutants += [
        (i, dataclasses.replace(n, by=-n.by)) for i, n in enumerate(good.nodes) if isinstance(n, Shift)
    ]
    mutants += [
        (i, dataclasses.replace(n, reverse=not n.reverse))
        for i, n in enumerate(good.nodes)
        if isinstance(n, Scan)
    ]
    tried = 0
    for i, node in mutants:

        def wrong(p, r, length, block, i=i, node=node):
            found = chunk(p, r, length, block)
            if length != 3:  # FIRST are left right: the longer chunk alone must be caught
                return found
            nodes = (*found.program.nodes[:i], node, *found.program.nodes[i + 1 :])
            return dataclasses.replace(found, program=dataclasses.replace(found.program, nodes=nodes))

        if not _means_the_same(good, node, i):
            found = certify_chunk(program, normal, make=wrong)
            assert not found.proved and not found.unfinished, (i, node)
            tried += 1
    assert tried


def _differentiated(program):
    found = adjoint(program, list(program.inputs("stream")), [])
    return found.program, found.streams


@pytest.mark.parametrize("name", LINEAR)
def test_the_adjoint_of_a_chunk_is_that_of_its_steps(name):
    program = step_program(name)
    found = certify_adjoint(program, analyse(program), _differentiated)
    assert found.proved, found.note


def test_no_mutant_of_an_adjoint_is_proved():
    program = step_program("merged-heads")
    normal, seen = analyse(program), []

    def recorded(p):
        seen.append(_differentiated(p)[0])
        return _differentiated(p)

    assert certify_adjoint(program, normal, recorded).proved
    tried = 0
    for i, node in node_mutants(seen[1].nodes):

        def wrong(p, i=i, node=node):
            back, streams = _differentiated(p)
            if back.nodes != seen[1].nodes:
                return back, streams
            return dataclasses.replace(back, nodes=(*back.nodes[:i], node, *back.nodes[i + 1 :])), streams

        if not _means_the_same(seen[1], node, i):
            found = certify_adjoint(program, normal, wrong)
            assert not found.proved and not found.unfinished, (i, node)
            tried += 1
    assert tried


@pytest.mark.parametrize("bound", [lambda d: d.clamp(min=1.0), torch.relu, lambda d: d.exp()])
def test_functions_of_a_product_with_a_sum_over_the_chunk(bound):
    """A normaliser that is bounded: of four steps the sum is long enough to have a name."""

    def step(s, n, q, k, v):
        s, n = s + k[:, :, None] * v[:, None], n + k
        return (s, n), ((s * q[:, :, None]).sum(1) / (bound((n * q).sum(-1, keepdim=True)) + 1.0),)

    shapes = sizes((2, 3, 4), (2, 3)), sizes((2, 3), (2, 3), (2, 4))
    program, _ = program_of("bounded", {"bounded": (step, *shapes, [])})
    found = certify_chunk(program, analyse(program))
    assert found.proved, found.note
