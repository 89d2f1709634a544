"""TARGET and its inputs: what a command line names, as a callable and its arguments.

Takes ``module:name`` or ``path.py:name`` and the ``--input`` texts; leaves a ``Target``.
Refuses with ``UsageError``, one line that says what is wrong and what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "c64": torch.complex64, "c128": torch.complex128,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip
_INPUT = re.compile(r"(?P<dtype>\w+)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?")


class UsageError(Exception):
    """A command line that cannot be carried out."""


@dataclasses.dataclass(frozen=True)
class Target:
    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def resolve(text: str, inputs: Sequence[str] = ()) -> Target:
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{text!r} is not a target; write module:name or path.py:name")
    module = _file(place) if place.endswith(".py") else _module(place)
    owner, model = _attribute(module, name)
    if isinstance(model, type):
        model = _built(model, text)
    if not callable(model):
        raise UsageError(f"{text} is neither an nn.Module nor a function, but a {type(model).__name__!r}")
    if inputs:
        torch.manual_seed(0)
        return Target(text, model, tuple(tensor(spec) for spec in inputs), {})
    beside = getattr(owner, "example_inputs", None) or getattr(module, "example_inputs", None)
    if beside is None:
        raise UsageError(f'{place} has no example_inputs(); write one, or give --input "f32[2,64,16]"')
    given = beside()
    if isinstance(given, Mapping):
        return Target(text, model, (), given)
    return Target(text, model, tuple(given) if isinstance(given, list | tuple) else (given,), {})


def tensor(spec: str) -> torch.Tensor:
    """A random tensor from ``f32[2,64,16]`` or ``i64[2,8]<100`` (integers below 100)."""
    match = _INPUT.fullmatch(spec.strip())
    if match is None or match["dtype"] not in _DTYPES:
        raise UsageError(f"input {spec!r} is not of the form f32[2,64,16] (dtypes: {', '.join(_DTYPES)})")
    dtype = _DTYPES[match["dtype"]]
    shape = [int(size) for size in match["shape"].split(",") if size.strip()]
    if dtype.is_floating_point or dtype.is_complex:
        if match["below"]:
            raise UsageError(f"input {spec!r}: only integers take a bound")
        return torch.randn(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    return torch.randint(0, int(match["below"] or 2), shape).to(dtype)


def _file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"there is no file {place}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules.setdefault(path.stem, module)
    return _loaded(place, lambda: (spec.loader.exec_module(module), module)[1])  # type: ignore[union-attr]


def _module(place: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return _loaded(place, lambda: importlib.import_module(place))


def _loaded(place: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except Exception as error:
        raise UsageError(f"importing {place} failed: {described(error)}") from error


def _attribute(module: ModuleType, name: str) -> tuple[Any, Any]:
    """``(what holds it, the object)`` for a dotted name."""
    owner: Any = module
    found: Any = module
    for part in name.split("."):
        owner = found
        if not hasattr(owner, part):
            near = difflib.get_close_matches(part, [n for n in dir(owner) if not n.startswith("_")], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{getattr(owner, '__name__', name)} has no {part!r}{hint}")
        found = getattr(owner, part)
    return owner, found


def _built(model: type, text: str) -> Any:
    torch.manual_seed(0)
    try:
        return model()
    except TypeError as error:
        raise UsageError(f"{text} cannot be built without arguments ({error}); name an instance") from error


def described(error: BaseException) -> str:
    """An exception on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
