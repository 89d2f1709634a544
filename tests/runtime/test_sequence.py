"""Parts of a call that are run as one: what each does alone, in their order."""

import pytest
import torch

from tenfuse.runtime.parts import Added, Spot, Zero
from tenfuse.runtime.sequence import sequenced


def spot(tensors, number, view):
    start = view.data_ptr() - tensors[number].data_ptr()
    return Spot(number, start, tuple(view.shape), view.stride(), view.dtype)


def run(parts, tensors):
    found = sequenced(parts)
    for part in found:
        part([x.data_ptr() for x in tensors], tensors)
    return len(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((3, 2, 16), (0, 1)),
        ((1, 1, 300), (0, 1)),
        ((5, 1, 7, 129), (0, 1)),
        ((4, 3, 7, 40), (0, 1, 2)),
        ((2, 2, 3, 1, 128), (0, 1, 3)),
        ((9, 2, 64, 130), (0, 1)),
    ],
)
def test_sums_are_added_to_what_is_there(dtype, shape, dims):
    torch.manual_seed(0)
    source = torch.randn(shape, dtype=dtype)
    left = [n for d, n in enumerate(shape) if d not in dims]
    whole = torch.randn(*left, 2, dtype=dtype)
    target, expected = whole[..., 1], whole.clone()
    expected[..., 1] += source.double().sum(dims).to(dtype)
    tensors = [source, whole]
    part = Added(spot(tensors, 0, source), dims, spot(tensors, 1, target))
    assert run([part, Zero(0, 0, 8)], tensors) == 1
    torch.testing.assert_close(whole, expected)
    assert source.view(-1)[: 8 // dtype.itemsize].eq(0).all()


def test_a_large_sum_is_the_same_on_many_threads():
    source, results = torch.randn(20, 1, 50, 200), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(torch.ones(50, 200))
            tensors = [source, results[-1]]
            run([Added(spot(tensors, 0, source), (0, 1), spot(tensors, 1, results[-1]))], tensors)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
    torch.testing.assert_close(results[0], 1 + source.sum((0, 1)))


def test_zeros_are_where_they_belong():
    for size in (0, 3, 5 << 20):
        x = torch.ones(size + 20, dtype=torch.uint8)
        run([Zero(0, 7, size), Zero(0, 0, 0)], [x])
        assert x[7 : size + 7].eq(0).all() and int(x.sum()) == 20


def test_what_needs_python_stays_between():
    """A sum into another type, or with nothing left to go along, is torch's; order is kept."""
    half, whole, one = torch.ones(32).bfloat16(), torch.ones(1, 1, 32), torch.zeros(())
    tensors = [whole, half, one]
    into_half = Added(spot(tensors, 0, whole), (0, 1), spot(tensors, 1, half))
    to_one = Added(spot(tensors, 0, whole), (0, 1, 2), spot(tensors, 2, one))
    assert run([into_half, to_one, Zero(0, 0, 64), to_one, Zero(0, 0, 128), to_one], tensors) == 6
    assert half.eq(2).all() and one == 32 + 16 and whole.eq(0).all()
