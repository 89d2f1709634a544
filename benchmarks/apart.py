"""A function called in a process of its own, which may be killed, crash or lose its device.

Takes a function of a module and arguments that can be pickled; leaves what it returns, or ``Lost``.
The process serves one call after another and is started anew after one that failed, for a kernel
that read where it may not leaves a device that no later call can use.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Lost(Exception):
    """Why there is no result, in one line."""


class Apart:
    """One process, started when it is first needed."""

    def __init__(self) -> None:
        self._child: Any = None
        self._pipe: Connection | None = None

    def __call__(self, function: Callable[..., Any], *args: Any, patience: float) -> Any:
        """The result of ``function(*args)``, if it comes within so many seconds."""
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((function, args))
            if not self._pipe.poll(patience):
                raise Lost(f"not done after {patience:.0f} s")
            fine, found = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.end()
            raise Lost("its process ended") from error
        except Lost:
            self.end()
            raise
        if not fine:
            self.end()
            raise Lost(found)
        return found

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()

    def end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._child.kill()
            self._child.join()
        self._child = self._pipe = None


def _serve(pipe: Connection) -> None:
    with contextlib.suppress(EOFError):
        while True:
            function, args = pipe.recv()
            try:
                found = True, function(*args)
            except Exception as error:
                lines = str(error).splitlines() or [""]
                found = False, f"{type(error).__name__}: {lines[0][:120]}"
            pipe.send(found)


__all__ = ["Apart", "Lost"]
