"""Temporal Eigenstate Networks, versions 0 to 3: the resonance inside every step.

Takes x [B, T, D]; leaves y [B, T, D].  The state z = a + ib is kept as two real tensors
[B, K] in row-vector convention, lambda = m e^{i omega} rotates and damps it, and

    z_t = (lambda * z_{t-1} + beta_t) R,    beta_t = x_t W_in^T (real: added to a only)

with R = I + eps M / (|M|_F + 1e-8) applied to a and b separately.  V0, V1 and V2 read
y_t = a_t W_out^T (V0 normalises it), V3 reads y_t = (a_t R) W_out^T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.case import Case, normal

State = tuple[Tensor, Tensor]


class Ten(nn.Module):
    """The parameters all versions share.  ``magnitude`` is (low, range) of m."""

    def __init__(
        self,
        dim: int = 32,
        states: int = 16,
        chunk: int = 64,
        magnitude: tuple[float, float] = (0.0, 0.99),
        resonant: bool = True,
    ) -> None:
        super().__init__()
        self.chunk, self.magnitude = chunk, magnitude
        self.alpha = nn.Parameter(torch.linspace(-1.0, 3.0, states))
        self.omega = nn.Parameter(torch.linspace(0.0, 3.0, states))
        self.w_in = nn.Parameter(normal(states, dim, scale=dim**-0.5))
        self.w_out = nn.Parameter(normal(dim, states, scale=states**-0.5))
        self.mix = nn.Parameter(normal(states, states)) if resonant else None

    def rotation(self) -> State:
        """lambda as (real, imaginary), each [K]."""
        low, span = self.magnitude
        m = low + span * torch.sigmoid(self.alpha)
        return m * torch.cos(self.omega), m * torch.sin(self.omega)

    def resonance(self, eps: float = 0.01) -> Tensor | None:
        """R [K, K], or None where the cell has none."""
        if self.mix is None:
            return None
        eye = torch.eye(self.mix.shape[0], dtype=self.mix.dtype, device=self.mix.device)
        return eye + eps * self.mix / (self.mix.norm() + 1e-8)

    def rest(self, x: Tensor, state: State | None = None) -> State:
        """The state passed in, or zero."""
        if state is not None:
            return state
        zero = x.new_zeros(x.shape[0], self.alpha.shape[0])
        return zero, zero.clone()


class V0(Ten):
    """One loop over T; projections and LayerNorm inside; append and stack."""

    def __init__(self, dim: int = 32, states: int = 16, **options: object) -> None:
        super().__init__(dim, states, **options)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, real: Tensor | None = None, imag: Tensor | None = None) -> Tensor:
        a, b = self.rest(x, None if real is None or imag is None else (real, imag))
        lr, li = self.rotation()
        r = self.resonance()
        outputs = []
        for t in range(x.shape[1]):
            beta = F.linear(x[:, t], self.w_in)
            a_new = lr * a - li * b + beta
            b_new = lr * b + li * a
            a, b = a_new @ r, b_new @ r
            outputs.append(self.norm(F.linear(a, self.w_out)))
        return torch.stack(outputs, dim=1)


class V1(Ten):
    """A chunk loop around a step loop; projection inside; stack per chunk, then cat."""

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[1]
        lr, li = self.rotation()
        resonance = self.resonance()
        a, b = self.rest(x)
        chunks = []
        for start in range(0, steps, self.chunk):
            outputs = []
            for t in range(start, min(start + self.chunk, steps)):
                beta = x[:, t, :] @ self.w_in.T
                new_a = a * lr - b * li + beta
                new_b = a * li + b * lr
                if resonance is not None:
                    new_a = torch.matmul(new_a, resonance)
                    new_b = torch.matmul(new_b, resonance)
                a, b = new_a, new_b
                outputs.append(a @ self.w_out.T)
            chunks.append(torch.stack(outputs, dim=1))
        return torch.cat(chunks, dim=1)


class V2(Ten):
    """As V1, with the chunk in a function that takes and returns the state as a tuple."""

    def run_chunk(self, x: Tensor, state: State, rotation: State, r: Tensor | None) -> tuple[Tensor, State]:
        rows = []
        lr, li = rotation
        for x_t in x.unbind(1):
            a, b = state
            state = (lr * a - li * b + F.linear(x_t, self.w_in), lr * b + li * a)
            if r is not None:
                state = (state[0] @ r, state[1] @ r)
            rows.append(F.linear(state[0], self.w_out))
        return torch.stack(rows, 1), state

    def forward(self, x: Tensor) -> Tensor:
        rotation, r, state = self.rotation(), self.resonance(), self.rest(x)
        outputs = []
        for piece in x.split(self.chunk, dim=1):
            y, state = self.run_chunk(piece, state, rotation, r)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


class V3(Ten):
    """Projections batched; both parts written into ``torch.empty``; R twice in the output."""

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        lr, li = self.rotation()
        r = self.resonance()
        beta = F.linear(x, self.w_in)
        a, b = self.rest(x)
        real = torch.empty(batch, steps, lr.shape[0], dtype=x.dtype, device=x.device)
        imag = torch.empty(batch, steps, lr.shape[0], dtype=x.dtype, device=x.device)
        for t in range(steps):
            a, b = (lr * a - li * b + beta[:, t]) @ r, (lr * b + li * a) @ r
            real[:, t] = a
            imag[:, t] = b
        return F.linear(real @ r, self.w_out)


class V1Truncated(V1):
    """Truncated BPTT: while training, the state is detached between chunks.

    ``cut`` is "chunk" (before every chunk but the first), "step" (before every step) or
    "inner" (before every step but the first of each chunk).
    """

    def __init__(self, *args: object, cut: str = "chunk", **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[1]
        lr, li = self.rotation()
        resonance = self.resonance()
        a, b = self.rest(x)
        chunks = []
        for chunk_idx, start in enumerate(range(0, steps, self.chunk)):
            if self.cut == "chunk" and chunk_idx > 0 and self.training:
                a, b = a.detach(), b.detach()
            outputs = []
            for t in range(start, min(start + self.chunk, steps)):
                if self.training and (self.cut == "step" or (self.cut == "inner" and t > start)):
                    a, b = a.detach(), b.detach()
                beta = x[:, t] @ self.w_in.T
                a, b = a * lr - b * li + beta, a * li + b * lr
                if resonance is not None:
                    a, b = a @ resonance, b @ resonance
                outputs.append(a @ self.w_out.T)
            chunks.append(torch.stack(outputs, dim=1))
        return torch.cat(chunks, dim=1)


class Averaged(nn.Module):
    """Two cells on the same input, averaged."""

    def __init__(self, dim: int = 32, states: int = 16) -> None:
        super().__init__()
        self.cells = nn.ModuleList([V1(dim, states), V3(dim, states)])

    def forward(self, x: Tensor) -> Tensor:
        return sum(cell(x) for cell in self.cells) / len(self.cells)


class Hierarchical(nn.Module):
    """One cell per scale s: mean-pool by s, recurrence of length T/s, repeat, weighted sum."""

    def __init__(self, dim: int = 32, states: int = 16, scales: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        super().__init__()
        self.scales = scales
        self.cells = nn.ModuleList([V3(dim, states) for _ in scales])
        self.weights = nn.Parameter(normal(len(scales)))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for weight, scale, cell in zip(self.weights.softmax(0), self.scales, self.cells, strict=True):
            pooled = F.avg_pool1d(x.mT, scale, ceil_mode=True).mT
            total = total + weight * cell(pooled).repeat_interleave(scale, dim=1)[:, : x.shape[1]]
        return total


def example_inputs(batch: int = 2, steps: int = 64, dim: int = 32) -> tuple[Tensor, ...]:
    """x [B, T, D] for every model of this file."""
    return (normal(batch, steps, dim),)


def _case(
    name: str, model: type[nn.Module], same_as: str = "", training: bool = False, **options: object
) -> Case:
    def build(steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return model(8, 6, **options).train(training), example_inputs(2, steps, 8)

    return Case(f"ten/{name}", build, same_as and f"ten/{same_as}")


def _given_state(steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return V0(8, 6).eval(), (*example_inputs(2, steps, 8), normal(2, 6), normal(2, 6))


CASES = (
    _case("v0", V0),
    Case("ten/v0-given-state", _given_state),
    _case("v1", V1),
    _case("v1-no-resonance", V1, resonant=False),
    _case("v1-floor", V1, magnitude=(0.1, 0.89)),
    _case("v2", V2, same_as="v1"),
    _case("v3", V3),
    _case("v1-truncated-chunk", V1Truncated, training=True, cut="chunk"),
    _case("v1-truncated-step", V1Truncated, training=True, cut="step"),
    _case("v1-truncated-inner", V1Truncated, training=True, cut="inner"),
    _case("v1-truncated-eval", V1Truncated, same_as="v1", cut="chunk"),
    _case("averaged", Averaged),
    _case("hierarchical", Hierarchical),
)
