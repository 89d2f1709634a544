"""A front door for ``associative_scan``: the call stays one operator in Dynamo's graph.

With ``combine_mode="generic"`` torch inlines the call as a tree of slices and joins, whose
shape depends on the length: a recurrence nobody could recognise, and one compilation per
length.  While Dynamo traces for tenfuse the call becomes the higher-order operator
instead; ``rewrite.tree`` puts torch's tree back where the operator stays unfused.

Takes the tracer as it is; leaves one method of it wrapped, once per process.  Other
backends never see a difference.  This file alone touches torch's private tracer:
whatever surprises it sends the tracer back, and the call is inlined as it always was.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

import torch
from torch._dynamo.exc import RestartAnalysis
from torch._dynamo.symbolic_convert import InstructionTranslatorBase, SpeculationEntry
from torch._dynamo.variables.functions import UserFunctionVariable
from torch._higher_order_ops.associative_scan import (
    associative_scan,
    associative_scan_op,
    wrap_combine_fn_flat,
)
from torch._prims_common import canonicalize_dim
from torch.utils import _pytree as pytree

from tenfuse.capture.record import GENERIC

log = logging.getLogger("tenfuse")
Backend = TypeVar("Backend", bound=Callable[..., Any])
_MARK, _OPTIONS = "_tenfuse", "_tenfuse_options"
_LAYERS = 8


def ours(backend: Backend, options: Any = None) -> Backend:
    """Mark a compiler function as tenfuse's own: graphs traced for it come through the door.

    ``options`` are those it works with; without them they are what ``torch.compile`` was given.
    """
    backend.__dict__[_MARK] = True
    backend.__dict__[_OPTIONS] = options
    return backend


def is_ours(backend: Any) -> bool:
    """Whether a tracer's compiler function is tenfuse, under the wrappers torch puts around it."""
    return any(getattr(layer, "__dict__", {}).get(_MARK) is True for layer in _layers(backend))


def options_of(backend: Any) -> Any:
    """The options given with a compiler function that is ours."""
    layers = _layers(backend)
    bound = (getattr(layer, "__dict__", {}).get(_OPTIONS) for layer in layers)
    given = (getattr(layer, "kwargs", {}).get("options") for layer in layers)
    return next((options for options in (*bound, *given) if options is not None), None)


def _layers(backend: Any) -> list[Any]:
    """A compiler function and what it wraps."""
    found: list[Any] = []
    while backend is not None and len(found) < _LAYERS:
        found.append(backend)
        inner = (getattr(backend, n, None) for n in ("_torchdynamo_orig_backend", "compiler_fn", "func"))
        backend = next((b for b in inner if b is not None), None)
    return found


def as_operator(
    combine_fn: Any, xs: Any, dim: int, reverse: bool = False, combine_mode: str = "generic"
) -> Any:
    """``associative_scan`` spelled with the operator; traced by Dynamo, never run."""
    leaves, spec = pytree.tree_flatten(xs)
    dim = canonicalize_dim(leaves[0].ndim, dim)
    leaves = pytree.tree_map(lambda leaf: torch.movedim(leaf, dim, 0), leaves)
    if reverse:
        leaves = pytree.tree_map(lambda leaf: torch.flip(leaf, [0]), leaves)
    combine = functools.partial(
        wrap_combine_fn_flat, combine_fn=combine_fn, spec=spec, num_leaves=len(leaves)
    )
    out = associative_scan_op(combine, leaves, additional_inputs=())
    if reverse:
        out = pytree.tree_map(lambda leaf: leaf.flip([0]), out)
    return pytree.tree_map(lambda leaf: torch.movedim(leaf, 0, dim), out)


_SPELLED: Any = as_operator
_RELIED_ON = (
    (InstructionTranslatorBase, "speculate"),
    (SpeculationEntry, "fail_and_restart_analysis"),
    (torch._C._functorch, "peek_interpreter_stack"),
)
"""Parts of the tracer that another torch may not have."""


def _generic(args: Any, kwargs: Any) -> bool:
    try:
        mode = inspect.signature(associative_scan).bind(*args, **kwargs).arguments.get("combine_mode")
    except TypeError:  # a wrong call: torch says so itself
        return False
    return mode is not None and mode.is_python_constant() and mode.as_python_constant() == "generic"


def _traced(tx: Any, args: Any, kwargs: Any) -> Any:
    """The result of the operator spelling in the tracer; None where the call is to be inlined.

    A spelling that fails has left its traces in the tracer, so tracing starts again and
    comes out here: Dynamo's own way of taking something back.
    """
    if not is_ours(tx.output.compiler_fn) or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    if not _generic(args, kwargs):
        return None
    attempt, trail = tx.speculate(), tx.speculation_log
    if attempt.failed(tx):
        return None
    here = trail.index
    try:
        # the operator asks for pointwise functions only; that limit is a GPU kernel's, not ours
        with mock.patch("torch._inductor.utils.is_pointwise_use", lambda use: True):
            found = UserFunctionVariable(_SPELLED).call_function(tx, args, kwargs)
        made = next(n for n in reversed(tx.output.graph.nodes) if n.target is associative_scan_op)
        made.meta[GENERIC] = True
        return found
    except RestartAnalysis:
        raise
    except Exception as error:  # any failure at all: torch inlines the call as it always does
        log.debug("associative_scan is inlined: %s", error)
        del trail.entries[here:]
    attempt.fail_and_restart_analysis(tx.error_on_graph_break)


def install() -> None:
    """Open the door, once per process."""
    original = UserFunctionVariable.call_function
    if getattr(original, _MARK, False):
        return
    if not all(hasattr(home, name) for home, name in _RELIED_ON):
        log.warning("this torch traces differently: associative_scan is inlined, as without tenfuse")
        return

    @functools.wraps(original)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        found = _traced(tx, args, kwargs) if self.fn is associative_scan else None
        return original(self, tx, args, kwargs) if found is None else found

    call_function.__dict__[_MARK] = True
    UserFunctionVariable.call_function = call_function  # type: ignore[method-assign]
