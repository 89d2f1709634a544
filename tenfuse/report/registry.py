"""The reports of this process' real compilations, newest last.

Takes a ``Report`` per compiled graph and the live launch counts of its kernels; leaves
``reports()``.  Bounded: the oldest reports go when there are many.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping

from tenfuse.report.report import LoopReport, Report

_KEPT = 256
_NONE: Mapping[str, int] = {}
_history: collections.deque[tuple[Report, Mapping[str, int]]] = collections.deque(maxlen=_KEPT)
_listener: contextvars.ContextVar[list[Report] | None] = contextvars.ContextVar("_listener", default=None)


def record(report: Report, launches: Mapping[str, int] | None = None) -> None:
    """Add one compilation; ``launches`` counts by kernel name and is read again later."""
    _history.append((report, _NONE if launches is None else launches))
    listening = _listener.get()
    if listening is not None:
        listening.append(report)


def reports() -> tuple[Report, ...]:
    """The compilations so far, each kernel with how often it has run until now."""
    return tuple(_counted(report, launches) for report, launches in tuple(_history))


def clear() -> None:
    """Forget every report."""
    _history.clear()


@contextlib.contextmanager
def recording() -> Iterator[list[Report]]:
    """The reports of the compilations inside the ``with``, as they come."""
    found: list[Report] = []
    token = _listener.set(found)
    try:
        yield found
    finally:
        _listener.reset(token)


def _counted(report: Report, launches: Mapping[str, int]) -> Report:
    def loop(one: LoopReport) -> LoopReport:
        return dataclasses.replace(one, launches=tuple(launches.get(name, 0) for name, _, _ in one.kernels))

    return dataclasses.replace(report, loops=tuple(loop(one) for one in report.loops))
