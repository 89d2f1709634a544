"""``assert_fused`` fails for every other reason than a wrong value."""

import pytest
import torch

from tenfuse.testing import assert_fused as called

X = torch.linspace(-1, 1, 48).reshape(2, 8, 3)


def decayed(x, *, rate=0.5):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = rate * h + x[:, t]
    return h


def noisy(x):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = torch.nn.functional.dropout(0.5 * h + x[:, t], 0.5)
    return h


def test_what_is_fused_passes(assert_fused):
    report = assert_fused(decayed, X, loops=1, form="elementwise", kwargs={"rate": 0.25})
    assert report.loops[0].steps in (7, 8)


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        (noisy, {}, "1 of 1 loops were kept"),
        (decayed, {"loops": 2}, "1 loops were fused, 2 expected"),
        (decayed, {"form": "dense"}, "has form 'elementwise', 'dense' expected"),
        (torch.cos, {}, "no loop over time was seen"),
    ],
)
def test_everything_else_fails(model, asked, message):
    with pytest.raises(AssertionError, match=message):
        called(model, X, **asked)
