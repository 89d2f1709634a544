"""fla-core's kernels for the recurrences of ``reference.steps``, where it is installed.

Takes the name of a step; leaves a function of the same ``Inputs``, or why there is none.

Held against the signatures of fla-core at its commit bc3b101 (August 2026).  With Triton 3.4 to 3.7.0
on Hopper fla refuses the gradient of "decayed" and "gated delta" (its ``chunk_bwd_dqkwg``, issue 640).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from reference.steps import Inputs

Run = Callable[[Inputs], Any]


def _plain(function: Any, x: Inputs) -> Any:
    q, k, v = x.streams
    return function(q, k, v, scale=1.0, initial_state=x.carry[0], output_final_state=True, normalize=False)


def _simple_gla(function: Any, x: Inputs) -> Any:
    q, k, v, g = x.streams
    return function(q, k, v, g=g, scale=1.0, initial_state=x.carry[0], output_final_state=True)


def _gla(function: Any, x: Inputs) -> Any:
    q, k, v, g = x.streams
    return function(q, k, v, g, scale=1.0, initial_state=x.carry[0], output_final_state=True)


def _delta(function: Any, x: Inputs) -> Any:
    q, k, v, beta = x.streams
    return function(q, k, v, beta, scale=1.0, initial_state=x.carry[0], output_final_state=True)


def _gated_delta(function: Any, x: Inputs) -> Any:
    q, k, v, g, beta = x.streams
    return function(q, k, v, g=g, beta=beta, scale=1.0, initial_state=x.carry[0], output_final_state=True)


def _rwkv7(function: Any, x: Inputs) -> Any:
    r, w, k, v, a, b = x.streams
    return function(r, w.log(), k, v, a, b, scale=1.0, initial_state=x.carry[0], output_final_state=True)


def _hgrn(function: Any, x: Inputs) -> Any:
    """It has no gradient of the first state, nor one through the last: the errors say so."""
    a, b = x.streams
    return function(b, a.log(), initial_state=x.carry[0], output_final_state=True)


def _retention(function: Any, x: Inputs) -> Any:
    """What ``chunk_retention`` calls; but with the decays of ``x``, which are rounded to its dtype."""
    (q, k, v), (decay,) = x.streams, x.fixed
    rates = decay.float().log()
    return function(q, k, v, g_gamma=rates, scale=1.0, initial_state=x.carry[0], output_final_state=True)


FUNCTIONS = {
    "gated": ("fla.ops.hgrn", "chunk_hgrn", _hgrn),
    "retnet": ("fla.ops.simple_gla", "chunk_simple_gla", _retention),
    "linear": ("fla.ops.linear_attn", "chunk_linear_attn", _plain),
    "decayed": ("fla.ops.simple_gla", "chunk_simple_gla", _simple_gla),
    "gla": ("fla.ops.gla", "chunk_gla", _gla),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule", _delta),
    "gated delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", _gated_delta),
    "kda": ("fla.ops.kda", "chunk_kda", _gated_delta),
    "rwkv7": ("fla.ops.rwkv7", "chunk_rwkv7", _rwkv7),
}
"""By step: module, function, and how it is called."""


def run_of(step: str) -> Run | str:
    """The hand-written kernel, or why there is none."""
    if step not in FUNCTIONS:
        return "no kernel"
    module, name, call = FUNCTIONS[step]
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError:
        return "not installed"
    except AttributeError:
        return f"no {name}"

    def run(x: Inputs) -> Any:
        # Its kernels keep the state in fp32, whatever the other tensors are.
        found, last = call(function, dataclasses.replace(x, carry=tuple(s.float() for s in x.carry)))
        return (last,), found

    return run


def version() -> str:
    try:
        return str(importlib.import_module("fla").__version__)
    except ImportError:
        return "not installed"
