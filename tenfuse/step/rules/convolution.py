"""Convolutions of a state whose window is one entry, or the whole of it: matrix products.

A kernel of one entry (``1x1``), or one as long as the dimension with nothing around it (the taps of
a causal convolution over the last inputs), reads every entry at one place of the window only, so it
is a contraction over channels and dimensions.  Refuses windows that slide: of these, ``windows`` has
made products before, where that is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.rules.base import linear, product, rule
from tenfuse.step.tensors import Space, Value
from tenfuse.step.windows import slides

aten = torch.ops.aten


@rule(aten.convolution.default)
def _convolution(
    space: Space,
    target: Any,
    a: Value,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    rank = len(a.dims) - 2
    sizes, taps = space.shape(a)[2:], space.shape(weight)[2:]
    if transposed or slides(sizes, taps, stride, padding, dilation):
        raise refuse(UNSUPPORTED_OP, "a window slides over the state (convolution)")
    channels = space.shape(a)[1]
    out = space.shape(weight)[0]
    a = space.reshape(a, (space.shape(a)[0], groups, 1, channels // groups, *sizes))
    weight = space.reshape(weight, (groups, out // groups, channels // groups, *taps))
    over = [3, *(4 + i for i, n in enumerate(taps) if n != 1)]
    found = space.reduce(product(space, a, space.unsqueeze(weight, 0)), over, True)
    shape = [space.shape(a)[0], out, *(1 if n != 1 else size for n, size in zip(taps, sizes, strict=True))]
    found = space.reshape(found, tuple(shape))
    if bias is None:
        return found
    return linear(space, "add", found, space.reshape(bias, (1, out, *[1] * rank)))
