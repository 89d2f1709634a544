"""Python's garbage collector, paused while graphs of many nodes are made.

Graphs are held by those who made them, so that the collector, which comes the more often the more is made,
goes through all of them in vain: it took a third of the time of a long loop's first call.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No collection inside; afterwards the collector runs again if it ran before."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
