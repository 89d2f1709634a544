"""Where a loop stands: its device, whether gradients are recorded there, and its autocast region.

Takes a ``Loop`` and the graph it was found in; leaves what the stages after capture must know of
both.  Refuses (DEVICE) loops whose tensors lie on several devices, or on one that no kernel is for.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import Loop
from tenfuse.config import Options
from tenfuse.reasons import DEVICE, refuse
from tenfuse.runtime.tiles import interpreting


def target(loop: Loop, options: Options) -> tuple[str, str]:
    """The language of the kernels, and what their matrix products multiply; refuses other devices."""
    values = [n.meta.get("example_value") for n in loop.body.graph.nodes]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    devices = sorted({str(v.device) for v in tensors if v.dim() or v.device.type != "cpu"})
    kinds = {v.device.type for v in tensors if v.dim() or v.device.type != "cpu"}
    if len(devices) > 1:
        raise refuse(DEVICE, f"the tensors of the loop are on {' and '.join(devices)}")
    if kinds - {"cpu", "cuda"}:
        raise refuse(DEVICE, f"a tensor of the loop is on {devices[0]}")
    card = kinds == {"cuda"}
    if options.target == "cpp" and card:
        raise refuse(DEVICE, f"target='cpp' and a tensor of the loop is on {devices[0]}; use target='auto'")
    if options.target == "triton" and not card and not interpreting():
        raise refuse(
            DEVICE, "target='triton' and the loop is on the CPU: set TRITON_INTERPRET=1, or use 'auto'"
        )
    if not card and options.target != "triton":
        return "cpp", "ieee"
    return "triton", _dots({v.dtype for v in tensors})


def _dots(dtypes: set[torch.dtype]) -> str:
    if torch.float32 in dtypes or torch.float64 in dtypes or not dtypes & {torch.bfloat16, torch.float16}:
        return "tf32" if torch.get_float32_matmul_precision() != "highest" else "ieee"
    return "bf16" if torch.bfloat16 in dtypes else "tf32"


def _nodes_before(loop: Loop, gm: fx.GraphModule) -> list[fx.Node]:
    first = loop.nodes[0] if loop.nodes else None
    found = []
    for node in gm.graph.nodes:
        if node is first:
            break
        found.append(node)
    return found


def grads_on(loop: Loop, gm: fx.GraphModule) -> bool:
    """Whether gradients are recorded where the loop stands."""
    on = torch.is_grad_enabled()
    for node in _nodes_before(loop, gm):
        if node.target is torch._C._set_grad_enabled:
            on = bool(node.args[0])
    return on


def autocast(loop: Loop, gm: fx.GraphModule) -> contextlib.AbstractContextManager[Any] | None:
    """The autocast region the loop stands in."""
    entered: list[fx.Node] = []
    for node in _nodes_before(loop, gm):
        if node.target is torch.amp.autocast_mode._enter_autocast:
            entered.append(node)
        elif node.target is torch.amp.autocast_mode._exit_autocast and entered:
            entered.pop()
    if not entered:
        return None
    device, dtype, enabled, cache = entered[-1].args
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache)  # type: ignore[arg-type]


__all__ = ["autocast", "grads_on", "target"]
