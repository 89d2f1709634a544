"""Byte-spectral models: an encoder without a carry, a mixing without a loop, a complex EMA.

The encoder takes bytes [B, T] (numbers from 0 to 255) and leaves [B, T, D]; the others
take x [B, T, D] and leave the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reference.case import Case, gate, normal


def fit(features: Tensor, dim: int) -> Tensor:
    """The last dimension padded with zeros, or cut, to ``dim``."""
    return nn.functional.pad(features, (0, dim - features.shape[-1]))


def encode(data: Tensor, dim: int = 16) -> Tensor:
    """Position by position: X_p = FFT(roll(s, -p)), features [|X|, sin arg X, cos arg X] of k bins."""
    s = data / 127.5 - 1
    bins = min(s.shape[1], (dim + 2) // 3)
    rows = []
    for p in range(s.shape[1]):
        x = torch.fft.fft(torch.roll(s, -p, dims=1), dim=1)[:, :bins]
        angle = torch.angle(x)
        rows.append(fit(torch.cat([x.abs(), torch.sin(angle), torch.cos(angle)], dim=-1), dim))
    return torch.stack(rows, dim=1)


def encode_batched(data: Tensor, dim: int = 16) -> Tensor:
    """The same with one batched FFT over a gather: no loop."""
    s = data / 127.5 - 1
    steps = s.shape[1]
    bins = min(steps, (dim + 2) // 3)
    time = torch.arange(steps, device=s.device)
    x = torch.fft.fft(s[:, (time[:, None] + time) % steps], dim=-1)[..., :bins]
    angle = torch.angle(x)
    return fit(torch.cat([x.abs(), torch.sin(angle), torch.cos(angle)], dim=-1), dim)


def encode_nested(data: Tensor, dim: int = 4) -> Tensor:
    """Batch, position, dimension: s_p cos(phase), the phase made a tensor inside the loops."""
    s = data / 127.5 - 1
    batch, steps = s.shape
    out = torch.zeros(batch, steps, dim, dtype=s.dtype, device=s.device)
    for b in range(batch):
        for p in range(steps):
            for d in range(dim):
                phase = 2 * math.pi * p * (d + 1) / steps
                out[b, p, d] = s[b, p] * torch.cos(torch.tensor(phase, dtype=s.dtype))
    return out


def encode_nested_batched(data: Tensor, dim: int = 4) -> Tensor:
    """What ``encode_nested`` means: an outer product."""
    s = data / 127.5 - 1
    time = torch.arange(s.shape[1], dtype=s.dtype, device=s.device)
    freq = torch.arange(1, dim + 1, dtype=s.dtype, device=s.device)
    return s[..., None] * torch.cos(2 * math.pi * time[:, None] * freq / s.shape[1])


class SpectralMixing(nn.Module):
    """FFT over time, k low bins times complex weights [D, k], inverse FFT: no loop."""

    def __init__(self, dim: int = 16, bins: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(dim, bins, 2))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1)
        bins = min(self.weight.shape[1], spectrum.shape[1])
        out = torch.zeros_like(spectrum)
        out[:, :bins] = spectrum[:, :bins] * torch.view_as_complex(self.weight)[:, :bins].T
        return torch.fft.irfft(out, n=x.shape[1], dim=1)


def spectral_ema_polar(real: Tensor, imag: Tensor, rho: Tensor) -> Tensor:
    """|H_t| = rho |H_{t-1}| + (1 - rho) |X_t| with the phase of X_t; [B, T, D, 2]."""
    x = torch.complex(real, imag)
    h = torch.zeros_like(x[:, 0])
    hs = []
    for t in range(x.shape[1]):
        magnitude = rho * h.abs() + (1 - rho) * x[:, t].abs()
        h = torch.polar(magnitude, x[:, t].angle())
        hs.append(h)
    return torch.view_as_real(torch.stack(hs, dim=1))


def spectral_ema_polar_scan(real: Tensor, imag: Tensor, rho: Tensor) -> Tensor:
    """The same as a linear scan of the magnitude."""
    x = torch.complex(real, imag)
    size = x.abs()
    m = torch.zeros_like(size[:, 0])
    ms = []
    for t in range(x.shape[1]):
        m = rho * m + (1 - rho) * size[:, t]
        ms.append(m)
    return torch.view_as_real(torch.polar(torch.stack(ms, dim=1), x.angle()))


def spectral_ema_aligned(real: Tensor, imag: Tensor, rho: Tensor, theta: Tensor) -> Tensor:
    """H_t = e^{i arg X_t} (a |H_{t-1}| + (1 - rho) |X_t|), a = rho e^{i theta}; [B, T, D, 2]."""
    x = torch.complex(real, imag)
    a = torch.polar(rho, theta)
    h = torch.zeros_like(x[:, 0])
    hs = []
    for t in range(x.shape[1]):
        turn = torch.polar(torch.ones_like(x[:, t].abs()), x[:, t].angle())
        h = turn * (a * h.abs() + (1 - rho) * x[:, t].abs())
        hs.append(h)
    return torch.view_as_real(torch.stack(hs, dim=1))


def example_inputs(batch: int = 2, steps: int = 64) -> tuple[Tensor, ...]:
    """bytes for ``encode``."""
    return (torch.randint(0, 256, (batch, steps)).float(),)


def ema_inputs(batch: int = 2, steps: int = 64, dim: int = 16) -> tuple[Tensor, ...]:
    """real, imag, rho."""
    return normal(batch, steps, dim), normal(batch, steps, dim), gate(dim)


def _aligned_inputs(steps: int) -> tuple[Tensor, ...]:
    return *ema_inputs(2, steps, 4), normal(4, scale=0.3)


CASES = (
    Case("spectral/encoder", lambda steps: (encode, example_inputs(2, steps)), kind="map"),
    Case(
        "spectral/encoder-batched",
        lambda steps: (encode_batched, example_inputs(2, steps)),
        "spectral/encoder",
        "none",
    ),
    Case("spectral/nested", lambda steps: (encode_nested, example_inputs(1, steps)), kind="map"),
    Case(
        "spectral/nested-batched",
        lambda steps: (encode_nested_batched, example_inputs(1, steps)),
        "spectral/nested",
        "none",
    ),
    Case("spectral/mixing", lambda steps: (SpectralMixing(5), (normal(2, steps, 5),)), kind="none"),
    Case("spectral/ema-polar", lambda steps: (spectral_ema_polar, ema_inputs(2, steps, 4))),
    Case(
        "spectral/ema-polar-scan",
        lambda steps: (spectral_ema_polar_scan, ema_inputs(2, steps, 4)),
        "spectral/ema-polar",
    ),
    Case("spectral/ema-aligned", lambda steps: (spectral_ema_aligned, _aligned_inputs(steps))),
)
