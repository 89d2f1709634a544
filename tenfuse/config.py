"""The options, their defaults and their checks.

Takes keyword arguments or the mapping given as ``torch.compile(..., options={...})``;
leaves a frozen ``Options``.  Refuses, with ``OptionError``, unknown names (naming the
nearest one) and values out of range.

Options are read when Dynamo compiles, which is at the first call of a compiled model, so
a ``patch`` has to enclose that call.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

_CHOICES: dict[str, tuple[str, ...]] = {
    "inner": ("inductor", "aot_eager", "eager"),
    "target": ("auto", "cpp", "triton"),
    "validate": ("off", "first-call"),
}
_FLAGS = ("strict", "fast_forward")
_PREFIX = "inductor."


class OptionError(ValueError):
    """An option that does not exist, or a value it does not take."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a compilation was asked for.

    ``strict``        a failure inside tenfuse raises instead of falling back
    ``inner``         the compiler of everything outside the loops
    ``target``        the language of the kernels; "auto" follows the tensors' device
    ``validate``      "first-call": compare the graph before and after on real inputs, once
    ``chunk``         steps per chunk (Triton) or between saved states (C++); "auto" lets the plan decide
    ``fast_forward``  trace a few steps of long ``range`` loops, and copy the others where that is the same
    ``inductor``      pairs ``(name, value)`` given as ``inductor.<name>``
    """

    strict: bool = False
    inner: str = "inductor"
    target: str = "auto"
    validate: str = "off"
    chunk: int | str = "auto"
    fast_forward: bool = True
    inductor: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(mapping: Mapping[str, Any] | None = None) -> Options:
        """The current defaults with ``mapping`` on top, checked."""
        return _updated(current(), mapping or {})


_NAMES = tuple(f.name for f in dataclasses.fields(Options) if f.name != "inductor")
_current: contextvars.ContextVar[Options | None] = contextvars.ContextVar("tenfuse_options", default=None)


def current() -> Options:
    """The options in force here: the defaults under every enclosing ``patch``."""
    return _current.get() or Options()


@contextlib.contextmanager
def patch(**changes: Any) -> Iterator[Options]:
    """Change defaults inside a ``with``: ``with config.patch(target="triton"): ...``."""
    options = _updated(current(), changes)
    token = _current.set(options)
    try:
        yield options
    finally:
        _current.reset(token)


def parse(text: str) -> tuple[str, Any]:
    """``"key=value"`` as typed on a command line."""
    name, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"option {text!r} has no value; write it as name=value")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    with contextlib.suppress(ValueError):
        return name, int(value)
    return name, value


def _updated(base: Options, changes: Mapping[str, Any]) -> Options:
    inductor = dict(base.inductor)
    own: dict[str, Any] = {}
    for name, value in changes.items():
        if isinstance(name, str) and name.startswith(_PREFIX) and len(name) > len(_PREFIX):
            inductor[name[len(_PREFIX) :]] = value
        else:
            own[name] = _checked(name, value)
    return dataclasses.replace(base, **own, inductor=tuple(sorted(inductor.items())))


def _checked(name: str, value: Any) -> Any:
    if name not in _NAMES:
        near = difflib.get_close_matches(str(name), _NAMES, n=1, cutoff=0.0)
        raise OptionError(
            f"tenfuse has no option {name!r}; did you mean {near[0]!r}? "
            f"(options: {', '.join(_NAMES)}, {_PREFIX}<name>)"
        )
    if name in _FLAGS and not isinstance(value, bool):
        raise OptionError(f"option {name!r} is {value!r}; use True or False")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise OptionError(f"option {name!r} is {value!r}; use one of {', '.join(map(repr, _CHOICES[name]))}")
    if name == "chunk" and value != "auto" and (type(value) is not int or value < 1):
        raise OptionError(f"option 'chunk' is {value!r}; use a positive integer or 'auto'")
    return value
