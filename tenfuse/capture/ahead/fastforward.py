"""Long loops: a few steps are traced, the others are copies of one of them.

Dynamo interprets every step of a loop, about a millisecond per operation.  When it has traced the first
two steps for tenfuse, the third is *tried* (``trial``): if it is proved to be what all the steps after
it are, they are written into the graph as copies of it, and tracing goes on with the last step.  The
graph is the one Dynamo would have made.

A step that is not proved to be that, for whatever reason, makes the tracer start again and leave this
loop alone, which is Dynamo's own way of taking something back.  With ``door``, the files of this folder
are the only ones that touch torch's private tracer.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch._dynamo.exc import RestartAnalysis, SpeculationRestartAnalysis
from torch._dynamo.symbolic_convert import (
    InliningGeneratorInstructionTranslator,
    InstructionTranslatorBase,
)

from tenfuse.capture.ahead.iterators import Item, Source, apart, item, source
from tenfuse.capture.ahead.replay import replay
from tenfuse.capture.ahead.trial import Trial
from tenfuse.collector import paused

log = logging.getLogger("tenfuse")
AHEAD = 2
"""Steps traced before one is tried: the first may differ, and the second settles."""
LEAST = 16
"""With fewer steps to come than this, they are traced."""
_FAILURES = 8
"""After so many loops of one graph that were no copies, the others are traced."""
_MARK = "_tenfuse"
_refused: weakref.WeakKeyDictionary[CodeType, set[int]] = weakref.WeakKeyDictionary()
"""Loops that were tried in vain: their code, and where in it they start."""


def install(wanted: Callable[[Any], bool]) -> None:
    """Go ahead of the tracer from now on, where ``wanted`` says so of its compiler function.

    Once per process; a torch that traces loops in another way is left to do so.
    """
    original = InstructionTranslatorBase.FOR_ITER
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def for_iter(tx: Any, inst: Any) -> None:
        advance = functools.partial(original, tx, inst)
        steps = _steps(tx) if _due(tx, inst, wanted) else None
        if steps is None:
            advance()
        else:
            _try(tx, inst, steps, advance)

    for_iter.__dict__[_MARK] = True
    for kind in _and_below(InstructionTranslatorBase):
        table = kind.dispatch_table
        kind.dispatch_table = [for_iter if handler is original else handler for handler in table]


def _and_below(kind: Any) -> list[Any]:
    found = [kind]
    for each in found:
        found += each.__subclasses__()
    return found


@dataclasses.dataclass
class _State:
    """What is known of the loops of one graph while it is traced."""

    loops: dict[int, tuple[Any, int]] = dataclasses.field(default_factory=dict)
    """Per iterator, itself and the steps begun."""
    trying: bool = False

    @staticmethod
    def of(tx: Any) -> _State:
        return tx.output.__dict__.setdefault("_tenfuse_loops", _State())  # type: ignore[no-any-return]

    def begun(self, loop: Any) -> int:
        """Steps begun before this one."""
        _, count = self.loops.get(id(loop), (loop, 0))
        self.loops[id(loop)] = loop, count + 1
        return count


def _due(tx: Any, inst: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether this is a step of a loop that may be tried."""
    if isinstance(tx, InliningGeneratorInstructionTranslator):
        return False  # between two of its steps others are traced
    state = _State.of(tx)
    return (
        state.begun(tx.stack[-1]) == AHEAD
        and not state.trying
        and _failures(tx) < _FAILURES
        and inst.offset not in _refused.get(tx.f_code, ())
        and wanted(tx.output.compiler_fn)
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _steps(tx: Any) -> tuple[Source, Item] | None:
    """Where the steps to come take from, and what all but the last do; None where that is not known, or
    where they are few."""
    found = source(tx.stack[-1])
    if found is None or found.left() < LEAST:
        return None
    taken = item(found.next(found.left() - 1))
    return (found, taken) if taken is not None and apart(taken) else None


def _failures(tx: Any) -> int:
    return tx.speculation_log.__dict__.get("_tenfuse_failures", 0)  # type: ignore[no-any-return]


def _try(tx: Any, inst: Any, steps: tuple[Source, Item], advance: Callable[[], None]) -> None:
    state = _State.of(tx)
    state.trying = True
    try:
        with paused():
            replay(tx, Trial(tx, inst, *steps).run(advance))
    except SpeculationRestartAnalysis as error:
        reason: Exception = error
    except RestartAnalysis:
        raise
    except Exception as error:  # whatever it is, tracing step by step is right
        reason = error
    else:
        state.trying = False
        return
    log.debug("every step is traced at %s:%s: %r", tx.f_code.co_filename, tx.lineno, reason)
    _refused.setdefault(tx.f_code, set()).add(inst.offset)
    tx.speculation_log.__dict__["_tenfuse_failures"] = _failures(tx) + 1
    tx.speculation_log.clear()
    raise SpeculationRestartAnalysis(restart_reason="tenfuse: the steps of a loop are no copies of one")
