"""Recurrences of published packages, run through the package's own code with random weights.

Takes nothing from the network: each fixture builds one mixer (or calls one function) of
``transformers`` at a tiny size and leaves it with inputs.  Training mode, no cache and no
attention mask, which is how each reaches its pure-PyTorch loop.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reference.case import Case, gate, normal


class Wrapped(nn.Module):
    """A mixer called with keyword arguments of its own, leaving the first of its results."""

    def __init__(self, mixer: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.mixer, self.kwargs = mixer, kwargs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.mixer(x, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter but the decays and norms filled with normal numbers; in training mode."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "A_log" not in name and not name.endswith("norm.weight"):
                p.normal_(std=p.shape[-1] ** -0.5 if p.dim() > 1 else 1.0)
    return module.train()


def mamba(parallel: bool) -> nn.Module:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    config = MambaConfig(
        hidden_size=8, state_size=4, num_hidden_layers=1, time_step_rank=2, use_associative_scan=parallel
    )
    return Wrapped(randomised(MambaMixer(config, 0)))


class MambaStack(nn.Module):
    """A whole model of two layers, from token ids to hidden states."""

    def __init__(self, parallel: bool) -> None:
        super().__init__()
        from transformers.models.mamba.modeling_mamba import MambaConfig, MambaModel

        config = MambaConfig(
            vocab_size=16, hidden_size=8, state_size=4, num_hidden_layers=2, time_step_rank=2,
            use_cache=False, use_associative_scan=parallel,
        )  # fmt: skip
        self.model = randomised(MambaModel(config))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False, return_dict=False)[0]


def falcon_mamba(parallel: bool) -> nn.Module:
    from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaConfig, FalconMambaMixer

    config = FalconMambaConfig(
        hidden_size=8, state_size=4, num_hidden_layers=1, time_step_rank=2, use_associative_scan=parallel
    )
    mixer = FalconMambaMixer(config, 0, initialize_mixer_weights=False)
    mixer.init_falcon_mamba_weights()
    return Wrapped(randomised(mixer))


def jamba(parallel: bool) -> nn.Module:
    from transformers.models.jamba import modeling_jamba as package

    config = package.JambaConfig(
        hidden_size=8, mamba_d_state=4, mamba_dt_rank=2, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, attn_layer_period=2, attn_layer_offset=1, use_associative_scan=parallel,
    )  # fmt: skip
    return Wrapped(randomised(package.JambaMambaMixer(config, 0)))


def zamba(parallel: bool) -> nn.Module:
    from transformers.models.zamba.modeling_zamba import ZambaConfig, ZambaMambaMixer

    config = ZambaConfig(
        hidden_size=8, mamba_d_state=4, mamba_dt_rank=2, n_mamba_heads=2, num_hidden_layers=1,
        layers_block_type=["mamba"], num_attention_heads=1, use_associative_scan=parallel,
    )  # fmt: skip
    return Wrapped(randomised(ZambaMambaMixer(config, 0)))


def recurrent_gemma(steps: int) -> nn.Module:
    from transformers.models.recurrent_gemma import modeling_recurrent_gemma as package

    config = package.RecurrentGemmaConfig(
        hidden_size=8, lru_width=8, num_attention_heads=2, num_hidden_layers=1
    )
    block = randomised(package.RecurrentGemmaRecurrentBlock(config, 0))
    positions = torch.arange(steps).expand(2, steps)
    return Wrapped(block, position_ids=positions, attention_mask=None, use_cache=False)


def rwkv() -> nn.Module:
    from transformers.models.rwkv.modeling_rwkv import RwkvConfig, RwkvSelfAttention

    config = RwkvConfig(hidden_size=8, attention_hidden_size=8, num_hidden_layers=1, context_length=256)
    return Wrapped(randomised(RwkvSelfAttention(config, 0)))


def rwkv_function(
    time_decay: torch.Tensor, time_first: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Any:
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    return rwkv_linear_attention_cpu(time_decay, time_first, k, v, return_state=True)


def delta_rule(package: str, name: str, **options: int) -> Callable[..., Any]:
    """``name`` of the model ``package``, with q and k normalised inside and the final state returned."""
    home = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    function = getattr(home, name)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor) -> Any:
        return function(
            q, k, v, g, beta,
            initial_state=None, output_final_state=True, use_qk_l2norm_in_kernel=True, **options,
        )  # fmt: skip

    return call


def delta_inputs(steps: int, vector: bool = False) -> tuple[torch.Tensor, ...]:
    """q, k, v [B, T, H, D], g [B, T, H] (or [B, T, H, D]), beta [B, T, H]."""
    shape = (2, steps, 2, 4)
    g = -F.softplus(normal(*(shape if vector else shape[:3])) - 2.0)
    return normal(*shape), normal(*shape), normal(*shape), g, gate(*shape[:3])


def xlstm(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: torch.Tensor, f: torch.Tensor) -> Any:
    """The recurrent sequence kernel; returns h and the last states."""
    from transformers.models.xlstm.modeling_xlstm import mlstm_recurrent_sequence_native

    return mlstm_recurrent_sequence_native(q, k, v, i, f, return_last_states=True)


def xlstm_chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: torch.Tensor, f: torch.Tensor) -> Any:
    """The chunkwise kernel with chunks of 4: its state loop runs over the chunks."""
    from transformers.models.xlstm.modeling_xlstm import mlstm_chunkwise_native_autograd

    return mlstm_chunkwise_native_autograd(q, k, v, i, f, return_last_states=True, chunk_size=4)


def xlstm_inputs(steps: int) -> tuple[torch.Tensor, ...]:
    shape = (2, 2, steps, 4)
    return normal(*shape), normal(*shape), normal(*shape), normal(*shape[:3]), normal(*shape[:3]) + 2.0


def hidden(steps: int, dim: int = 8) -> tuple[torch.Tensor, ...]:
    return (normal(2, steps, dim),)


def _both(name: str, build: Callable[[bool], nn.Module], dim: int = 8) -> tuple[Case, ...]:
    """The plain loop, and the default path through ``associative_scan``."""
    return (
        Case(name, lambda steps: (build(False), hidden(steps, dim))),
        Case(f"{name}-associative-scan", lambda steps: (build(True), hidden(steps, dim))),
    )


def _rwkv_inputs(steps: int) -> tuple[torch.Tensor, ...]:
    return normal(6), normal(6), normal(2, steps, 6), normal(2, steps, 6)


PUBLISHED = (
    *_both("mamba", mamba),
    Case("mamba-model", lambda steps: (MambaStack(False), (torch.randint(0, 16, (2, steps)),))),
    Case(
        "mamba-model-associative-scan", lambda steps: (MambaStack(True), (torch.randint(0, 16, (2, steps)),))
    ),
    *_both("falcon-mamba", falcon_mamba),
    *_both("jamba", jamba),
    *_both("zamba", zamba),
    Case("recurrent-gemma", lambda steps: (recurrent_gemma(steps), hidden(steps))),
    Case("rwkv", lambda steps: (rwkv(), hidden(steps))),
    Case("rwkv-function", lambda steps: (rwkv_function, _rwkv_inputs(steps))),
    Case(
        "qwen3-next",
        lambda steps: (delta_rule("qwen3_next", "torch_recurrent_gated_delta_rule"), delta_inputs(steps)),
    ),
    Case(
        "qwen3-5",
        lambda steps: (delta_rule("qwen3_5", "torch_recurrent_gated_delta_rule"), delta_inputs(steps)),
    ),
    Case(
        "kimi-linear",
        lambda steps: (
            delta_rule("kimi_linear", "recurrent_kimi_delta_attention"),
            delta_inputs(steps, vector=True),
        ),
    ),
    Case(
        "qwen3-next-chunks",
        lambda steps: (
            delta_rule("qwen3_next", "torch_chunk_gated_delta_rule", chunk_size=4),
            delta_inputs(4 * steps),
        ),
    ),
    Case(
        "kimi-linear-chunks",
        lambda steps: (
            delta_rule("kimi_linear", "chunk_kimi_delta_attention", chunk_size=4),
            delta_inputs(4 * steps, vector=True),
        ),
        kept=("TF105",),
    ),
    Case("xlstm", lambda steps: (xlstm, xlstm_inputs(steps))),
    Case("xlstm-chunks", lambda steps: (xlstm_chunks, xlstm_inputs(4 * steps))),
)
