"""The program that is read from a step means what the step means, in float64."""

import pytest
import torch
import torch.fx as fx

from tenfuse.step import interpret
from tenfuse.step.program import Input
from tests.step.steps import STEPS, analysed

STEPS_RUN = 4


def _random(like, *lead):
    shape = (*lead, *like.shape)
    if like.dtype is torch.bool:
        return torch.rand(shape) > 0.5
    return torch.randn(shape, dtype=torch.complex128 if like.is_complex() else torch.float64)


def _seen(tensor, view, sizes, lead=0):
    """``tensor`` with the axes of ``view``, by plain strides."""
    if view.part is not None:
        tensor = torch.view_as_real(tensor)[..., view.part]
    offset = tensor.storage_offset() + sum(n * tensor.stride(d + lead) for d, n in view.offset)
    shape = [*tensor.shape[:lead], *(sizes[a] for a in view.axes)]
    return tensor.as_strided(
        shape, [*tensor.stride()[:lead], *(tensor.stride(d + lead) * n for d, n in view.dims)], offset
    )


def _values(aten, carries, streams, invariants):
    """Every node of the step's own graph on real tensors."""
    env = dict(
        zip((*aten.carries, *aten.streams, *aten.invariants), (*carries, *streams, *invariants), strict=True)
    )
    for node in aten.graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            target = (
                torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
            )
            env[node] = target(*args, **kwargs)
    return env


@pytest.mark.parametrize("name", STEPS)
def test_means_the_step(name):
    torch.manual_seed(0)
    step, carries, streams, invariants = STEPS[name]
    aten, _, found = analysed(step, carries, streams, invariants)
    program = found.program
    state = [_random(c) for c in carries]
    xs = [_random(x, STEPS_RUN) for x in streams]
    constants = [_random(v) for v in invariants]
    start, values = list(state), []
    for t in range(STEPS_RUN):
        values.append(_values(aten, state, [x[t] for x in xs], constants))
        state = [values[-1][n] for n in aten.nexts]
    finals, ys = interpret.scan(
        program,
        [_seen(start[p.source], p.view, program.sizes) for p in found.carries],
        {
            i: torch.stack([_seen(v[p.source], p.view, program.sizes) for v in values])
            for i, p in enumerate(found.streams)
        },
        {i: _seen(values[0][p.source], p.view, program.sizes) for i, p in enumerate(found.invariants)},
        STEPS_RUN,
    )
    for place, final in zip(found.carries, finals, strict=True):
        torch.testing.assert_close(final, _seen(state[place.source], place.view, program.sizes))
    for place, y in zip(found.outs, ys, strict=True):
        want = torch.stack([_seen(v[place.source], place.view, program.sizes) for v in values])
        torch.testing.assert_close(y, want.to(y.dtype))


def test_delta_rule_keeps_its_free_axes_parallel():
    step, *inputs = STEPS["delta"]
    _, _, found = analysed(step, *inputs)
    carry = found.program.carries[0]
    assert carry.axes == carry.next_axes
    assert found.program.parallel_axes() == {carry.axes[0], carry.axes[1], carry.axes[3]}


def test_a_selective_scan_never_writes_its_state_nor_reads_a_broadcast():
    step, *inputs = STEPS["selective"]
    _, parts, found = analysed(step, *inputs)
    sizes = found.program.sizes
    written = [len(o.axes) for o in found.program.outs]
    assert written == [2]
    reads = found.program.inputs("stream").values()
    assert all(len(axes) == 2 for axes in reads), "the outer products and exp(dt A) are made in the kernel"
    assert len(parts.exports) == 1 and sizes


def test_weights_of_gates_are_read_in_pieces():
    step, *inputs = STEPS["lstm"]
    _, _, found = analysed(step, *inputs)
    weights = [p for p in found.invariants if len(p.view.axes) == 2]
    assert sorted(dict(p.view.offset)[0] for p in weights) == [0, 4, 8, 12]


def test_two_names_for_one_tensor_are_mixing():
    step, *inputs = STEPS["symmetrised"]
    _, _, found = analysed(step, *inputs)
    namings = {n.axes for n in found.program.nodes if isinstance(n, Input) and n.kind == "carry"}
    assert len(namings) > 1
    batch = {axes[0] for axes in namings}
    assert found.program.parallel_axes() == batch
