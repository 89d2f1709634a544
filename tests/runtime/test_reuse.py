"""Memory used again: only what nobody can see any more, and not without end."""

import threading

import pytest
import torch

from tenfuse.runtime import reuse
from tenfuse.runtime.reuse import MANY, MOST, SMALLEST, Pool

COUNT = SMALLEST // 4


@pytest.fixture
def pool():
    if reuse._alone() is None:
        pytest.skip("this torch does not say who holds a storage")
    return Pool()


def taken(pool, count=COUNT, shape=None):
    return pool.empty(shape or (count,), (1,) if shape is None else (shape[1], 1), torch.float32, 4 * count)


def test_memory_that_nobody_holds_is_used_again(pool):
    x = taken(pool)
    start = x.data_ptr()
    del x
    y = taken(pool, shape=(COUNT // 8, 8))
    assert y.data_ptr() == start
    assert y.shape == (COUNT // 8, 8) and y.is_contiguous() and y._base is None


@pytest.mark.parametrize(
    "holder",
    [
        lambda x: x,
        lambda x: x[3:5].unsqueeze(0),
        lambda x: x.numpy(),
        lambda x: x.untyped_storage(),
        lambda x: x.detach().requires_grad_(),
        lambda x: memoryview(x.numpy()),
    ],
)
def test_memory_that_is_held_in_any_way_is_not(pool, holder):
    held = holder(taken(pool))
    others = [taken(pool).fill_(7) for _ in range(3)]
    starts = {y.data_ptr() for y in others}
    assert len(starts) == 3
    view = torch.as_tensor(held) if not isinstance(held, torch.UntypedStorage) else None
    start = held.data_ptr() if view is None else view.untyped_storage().data_ptr()
    assert start not in starts


def test_what_autograd_saved_is_held(pool):
    x = taken(pool).fill_(2).requires_grad_()
    y = (x * x).sum()
    del x
    assert (taken(pool).fill_(5) == 5).all()
    assert (y.grad_fn.next_functions[0][0]._saved_self == 2).all()


def test_memory_another_process_may_see_is_left_alone(pool):
    x = taken(pool).share_memory_()
    start = x.data_ptr()
    del x
    assert taken(pool).data_ptr() != start
    assert pool.bytes() == SMALLEST


def test_memory_that_was_resized_is_left_alone(pool):
    x = taken(pool)
    x.untyped_storage().resize_(16)
    del x
    taken(pool).fill_(1)
    assert pool.bytes() == SMALLEST


def test_small_and_huge_tensors_are_left_to_torch(pool):
    for count in (COUNT - 1, MOST // 4 + 1):
        assert taken(pool, count).shape == (count,)
    assert pool.bytes() == 0


def test_not_without_end(pool, monkeypatch):
    kept = [taken(pool) for _ in range(MANY + 5)]
    assert len({x.data_ptr() for x in kept}) == MANY + 5
    assert pool.bytes() == MANY * SMALLEST
    monkeypatch.setattr(reuse, "MOST", 3 * SMALLEST)
    kept.append(taken(pool))
    assert pool.bytes() == 3 * SMALLEST
    start = kept[-1].data_ptr()
    del kept[-1]
    assert taken(pool).data_ptr() == start


def test_memory_of_a_size_nobody_asks_for_any_more_is_let_go(pool):
    taken(pool, 2 * COUNT)
    assert pool.bytes() == 2 * SMALLEST
    for _ in range(reuse.IDLE):
        pool._remember(torch.empty(COUNT), SMALLEST)
    assert not any(k.size == 2 * SMALLEST for k in pool._kept)


def test_threads_never_share(pool):
    seen, faults = [], []

    def work(number):
        for _ in range(200):
            x = taken(pool).fill_(number)
            y = taken(pool).fill_(-number)
            if not ((x == number).all() and (y == -number).all()):
                faults.append(number)
        seen.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(seen) == [1, 2, 3] and not faults


def test_another_call_waits_for_no_lock(pool):
    x = taken(pool)
    with pool._lock:
        y = taken(pool)
    assert y.data_ptr() != x.data_ptr()


def test_results_and_gradients_of_calls_stay_as_they_were():
    """Large enough for their memory to be remembered; some are dropped, some kept."""

    def smooth(x, a):
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = a * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)

    torch.manual_seed(0)
    run = torch.compile(smooth, backend="tenfuse", options={"strict": True, "inner": "eager"})
    a = torch.rand(64, dtype=torch.float64)
    kept = []
    for turn in range(6):
        x = torch.randn(16, 80, 64, dtype=torch.float64, requires_grad=True)
        y = run(x, a)
        (g,) = torch.autograd.grad(y.sin().sum(), x)
        if turn % 2:
            kept.append((x, y, g, y.detach().clone(), g.clone()))
        del y, g
    for x, y, g, y_then, g_then in kept:
        assert torch.equal(y, y_then) and torch.equal(g, g_then)
        expected = smooth(x, a)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(g, torch.autograd.grad(expected.sin().sum(), x)[0])
