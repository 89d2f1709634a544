"""Temporal Eigenstate Networks, versions 4 and 5: the resonance at the end of a chunk.

Takes x [B, T, D]; leaves y [B, T, D].  Inside a chunk the recurrence is elementwise,

    z_t = lambda * z_{t-1} + beta_t,    y_t = (a_t R) W_out^T,

and at the chunk's end (a ragged last one too) z <- z_last R.  The steps stand in
TorchScript functions unrolled by hand, by 8 and by 4.
"""

# No postponed annotations here: TorchScript reads them from the source.
from typing import Tuple  # noqa: UP035

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.case import Case
from reference.ten import Ten, example_inputs


@torch.jit.script
def chunk_by_8(a: Tensor, b: Tensor, lr: Tensor, li: Tensor, beta: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
    """States a_t of one chunk [B, C, K] and the last (a, b); eight steps a turn, then the tail."""
    steps = beta.size(1)
    out = torch.empty_like(beta)
    t = 0
    while t + 7 < steps:
        a0 = lr * a - li * b + beta[:, t]
        b0 = lr * b + li * a
        out[:, t] = a0
        a1 = lr * a0 - li * b0 + beta[:, t + 1]
        b1 = lr * b0 + li * a0
        out[:, t + 1] = a1
        a2 = lr * a1 - li * b1 + beta[:, t + 2]
        b2 = lr * b1 + li * a1
        out[:, t + 2] = a2
        a3 = lr * a2 - li * b2 + beta[:, t + 3]
        b3 = lr * b2 + li * a2
        out[:, t + 3] = a3
        a4 = lr * a3 - li * b3 + beta[:, t + 4]
        b4 = lr * b3 + li * a3
        out[:, t + 4] = a4
        a5 = lr * a4 - li * b4 + beta[:, t + 5]
        b5 = lr * b4 + li * a4
        out[:, t + 5] = a5
        a6 = lr * a5 - li * b5 + beta[:, t + 6]
        b6 = lr * b5 + li * a5
        out[:, t + 6] = a6
        a = lr * a6 - li * b6 + beta[:, t + 7]
        b = lr * b6 + li * a6
        out[:, t + 7] = a
        t += 8
    while t < steps:
        a_new = lr * a - li * b + beta[:, t]
        b = lr * b + li * a
        a = a_new
        out[:, t] = a
        t += 1
    return out, a, b


@torch.jit.script
def chunk_by_4(a: Tensor, b: Tensor, lr: Tensor, li: Tensor, beta: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
    """As ``chunk_by_8``, four steps a turn with ``for t0 in range(0, C - 3, 4)``."""
    chunk_len = beta.size(1)
    out = torch.empty_like(beta)
    for t0 in range(0, chunk_len - 3, 4):
        a0 = lr * a - li * b + beta[:, t0]
        b0 = lr * b + li * a
        a1 = lr * a0 - li * b0 + beta[:, t0 + 1]
        b1 = lr * b0 + li * a0
        a2 = lr * a1 - li * b1 + beta[:, t0 + 2]
        b2 = lr * b1 + li * a1
        a = lr * a2 - li * b2 + beta[:, t0 + 3]
        b = lr * b2 + li * a2
        out[:, t0] = a0
        out[:, t0 + 1] = a1
        out[:, t0 + 2] = a2
        out[:, t0 + 3] = a
    for t in range((chunk_len // 4) * 4, chunk_len):
        a_new = lr * a - li * b + beta[:, t]
        b = lr * b + li * a
        a = a_new
        out[:, t] = a
    return out, a, b


@torch.jit.script
def chunk_addcmul(
    a: Tensor, b: Tensor, lr: Tensor, li: Tensor, beta: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
    """The same steps, one at a time, with ``addcmul``."""
    out = torch.empty_like(beta)
    for t in range(beta.size(1)):
        a_new = torch.addcmul(torch.addcmul(beta[:, t], lr, a), li, b, value=-1.0)
        b = torch.addcmul(lr * b, li, a)
        a = a_new
        out[:, t] = a
    return out, a, b


class V4(Ten):
    """Unrolled by 8."""

    run = staticmethod(chunk_by_8)

    def forward(self, x: Tensor) -> Tensor:
        lr, li = self.rotation()
        r = self.resonance()
        a, b = self.rest(x)
        beta = F.linear(x, self.w_in)
        outputs = []
        for start in range(0, x.shape[1], self.chunk):
            states, a, b = self.run(a, b, lr, li, beta[:, start : start + self.chunk])
            outputs.append(F.linear(states @ r, self.w_out))
            a, b = a @ r, b @ r
        return torch.cat(outputs, dim=1)


class V4By4(V4):
    """Unrolled by 4."""

    run = staticmethod(chunk_by_4)


class V5(V4):
    """With addcmul."""

    run = staticmethod(chunk_addcmul)


class V4Plain(Ten):
    """The same function with neither TorchScript nor unrolling: what V4 and V5 mean."""

    def forward(self, x: Tensor) -> Tensor:
        lr, li = self.rotation()
        r = self.resonance()
        a, b = self.rest(x)
        outputs = []
        for t in range(x.shape[1]):
            a, b = lr * a - li * b + F.linear(x[:, t], self.w_in), lr * b + li * a
            outputs.append(F.linear(a @ r, self.w_out))
            if (t + 1) % self.chunk == 0:
                a, b = a @ r, b @ r
        return torch.stack(outputs, dim=1)


def _case(name: str, model: type[nn.Module], same_as: str = "") -> Case:
    def build(steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return model(8, 6).eval(), example_inputs(2, steps, 8)

    return Case(f"ten/{name}", build, same_as and f"ten/{same_as}")


CASES = (
    _case("v4-plain", V4Plain),
    _case("v4-by-8", V4, same_as="v4-plain"),
    _case("v4-by-4", V4By4, same_as="v4-plain"),
    _case("v5", V5, same_as="v4-plain"),
)
