"""The command line: ``tenfuse explain | check | bench | doctor | cache``.

Takes arguments; leaves text, JSON or HTML on standard output and an exit status: 0, 1
where the answer is no (a kept loop under ``--require-fused``, a failed check, something
missing), 2 with one line on standard error where the command cannot be carried out.
Progress is shown on a terminal only; NO_COLOR is honoured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from tenfuse.tools.doctor import Check
    from tenfuse.tools.target import Target

_EPILOG = """\
TARGET is module:name or path.py:name: an nn.Module class or instance, or a function.
Its inputs come from example_inputs() beside it, or from --input, once per argument.
"""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    from tenfuse.config import OptionError
    from tenfuse.tools.target import UsageError

    try:
        return int(arguments.run(arguments))
    except (UsageError, OptionError) as error:
        return _failed(str(error), arguments)
    except KeyboardInterrupt:
        return _failed("interrupted", arguments)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        from tenfuse.tools.doctor import NEEDED

        package = (error.name or "").partition(".")[0]
        if package not in NEEDED:
            return _unexpected(error, arguments)
        return _failed(f"{package} is not installed: pip install {package}", arguments)
    except Exception as error:
        return _unexpected(error, arguments)


def _parser() -> argparse.ArgumentParser:
    from tenfuse import __version__

    parser = argparse.ArgumentParser(prog="tenfuse", description="Fused kernels for Python loops over time.")
    parser.add_argument("--version", action="version", version=f"tenfuse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    explain = _command(commands, "explain", _explain, "show what becomes of every loop, and why")
    explain.add_argument("--format", choices=("text", "json", "html"), default="text")
    explain.add_argument("--kernels", action="store_true", help="also show the generated kernels")
    explain.add_argument("--graph", action="store_true", help="also show each graph before and after")
    explain.add_argument("--require-fused", action="store_true", help="exit with 1 if a loop is kept")

    check = _command(commands, "check", _check, "compare outputs and gradients with eager float64")
    check.add_argument("--format", choices=("text", "json"), default="text")

    bench = _command(commands, "bench", _bench, "time eager against compiled, with the errors")
    bench.add_argument("--format", choices=("text", "json"), default="text")
    bench.add_argument("--rounds", type=_positive, default=20, help="at most this many timings each (20)")
    bench.add_argument("--seconds", type=_duration, default=10.0, help="at most this long per pass (10)")

    doctor = commands.add_parser("doctor", help="try everything that compiling needs")
    doctor.add_argument("--format", choices=("text", "json"), default="text")
    doctor.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    doctor.set_defaults(run=_doctor)

    summary = "say what the kernel cache holds, prune it or clear it"
    cache = commands.add_parser("cache", help=summary, description=summary[0].upper() + summary[1:] + ".")
    cache.add_argument("what", choices=("show", "prune", "clear"), nargs="?", default="show")
    cache.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    cache.set_defaults(run=_cache)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _duration(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def _command(commands: Any, name: str, run: Callable[..., int], summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--input", action="append", default=[], metavar="SPEC", help='such as "f32[2,64,16]"')
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="see tenfuse.config"
    )
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _explain(arguments: argparse.Namespace) -> int:
    from tenfuse.report.explain import explain
    from tenfuse.report.text import render, to_text

    target, options = _target(arguments)
    with _progress(f"explaining {target.name}"), _quiet(arguments):
        call = explain(target.model, graphs=arguments.graph, **options)
        try:
            report = dataclasses.replace(call(*target.args, **target.kwargs), model=target.name)
        except Exception:
            target.model(*target.args, **target.kwargs)  # its own error, if it has one, is the clearer
            raise
    if arguments.format == "text":
        console = _console()
        shown = (report, arguments.kernels, arguments.graph)
        console.print(render(*shown)) if console.is_terminal else print(to_text(*shown))
    else:
        print(report.to_json() if arguments.format == "json" else report.to_html())
    return 1 if arguments.require_fused and report.kept else 0


def _check(arguments: argparse.Namespace) -> int:
    from tenfuse.testing.equivalence import NotEquivalent, check

    target, options = _target(arguments)
    with _progress(f"checking {target.name}"):
        try:
            result = check(target.model, **options)(*target.args, **target.kwargs)
        except NotEquivalent as wrong:
            result = wrong.result
    if arguments.format == "json":
        _print_json({"ok": result.ok, **dataclasses.asdict(result)})
    else:
        _console().print(str(result), highlight=False, soft_wrap=True)
    return 0 if result.ok else 1


def _bench(arguments: argparse.Namespace) -> int:
    from tenfuse.tools.bench import measure

    target, options = _target(arguments)
    with _progress(f"benchmarking {target.name}") as tell:
        timings, errors = measure(target, options, arguments.rounds, arguments.seconds, tell)
    if arguments.format == "json":
        rows = [{**dataclasses.asdict(t), "ratio": t.ratio} for t in timings]
        _print_json({"ok": errors.ok, "timings": rows, **dataclasses.asdict(errors)})
    else:
        lines = [f"{'':20}{'eager ms':>12}{'tenfuse ms':>12}{'ratio':>8}{'first call s':>14}"]
        lines += [
            f"{t.what:20}{t.eager:12.3f}{t.compiled:12.3f}{t.ratio:7.1f}x{t.first:14.1f}" for t in timings
        ]
        _console().print("\n".join([*lines, "", str(errors)]), highlight=False, soft_wrap=True)
    return 0 if errors.ok else 1


def _doctor(arguments: argparse.Namespace) -> int:
    from tenfuse.tools.doctor import examine

    with _progress("examining"):
        checks = examine()
    if arguments.format == "json":
        _print_json([dataclasses.asdict(c) for c in checks])
    else:
        for c in checks:
            _print_check(c)
    return 1 if any(c.ok is False for c in checks) else 0


def _cache(arguments: argparse.Namespace) -> int:
    from tenfuse.runtime import prune
    from tenfuse.runtime.cache import root
    from tenfuse.tools.doctor import held, in_mib

    home, allowed = root(), prune.bound()
    gone: list[prune.Item] = []
    if arguments.what == "clear" or (arguments.what == "prune" and allowed):
        prune.sweep(home)
        gone = prune.prune(home, 0 if arguments.what == "clear" else allowed)
    if arguments.what != "show":
        print(f"removed {held(gone)}")
    print(f"holds   {held(prune.items(home))}")
    print(f"bound   {in_mib(allowed) if allowed else 'none'} (TENFUSE_CACHE_SIZE)")
    print(f"folder  {home}")
    return 0


def _print_check(check: Check) -> None:
    sign, colour = {True: ("ok", "green"), False: ("NO", "red"), None: ("--", "dim")}[check.ok]
    text = f"  {check.name:10}{check.detail}"
    if not _has_rich():  # which is one of the things that the doctor looks for
        print(sign + text)
        return
    from rich.text import Text

    _console().print(Text.assemble((sign, colour), text), soft_wrap=True)


def _target(arguments: argparse.Namespace) -> tuple[Target, dict[str, Any]]:
    from tenfuse import config
    from tenfuse.tools.target import resolve

    options = dict(config.parse(text) for text in arguments.option)
    config.Options.of(options)
    return resolve(arguments.target, arguments.input), options


def _has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=100, color_system=None)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error while something runs; silent in a pipe."""
    console = _console(stderr=True) if _has_rich() else None
    if console is None or not console.is_terminal:
        yield lambda text: None
        return
    with console.status(what) as status:
        yield lambda text: status.update(f"{what}: {text}")


@contextlib.contextmanager
def _quiet(arguments: argparse.Namespace) -> Iterator[None]:
    """Torch logs a traceback where shapes do not fit, above the error that says so."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    try:
        if not arguments.traceback:
            log.setLevel(logging.CRITICAL)
        yield
    finally:
        log.setLevel(level)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _at(error: BaseException) -> str:
    """The innermost place of an error outside tenfuse, what is installed, and Python's own library."""
    others = (os.path.dirname(__file__), os.path.dirname(os.__file__), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)]
    own = [f for f in frames if "site-packages" not in f.filename]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def _unexpected(error: Exception, arguments: argparse.Namespace) -> int:
    from tenfuse.tools.target import described

    return _failed(f"{described(error)}{_at(error)} (--traceback shows more)", arguments)


def _failed(message: str, arguments: argparse.Namespace) -> int:
    if arguments.traceback:
        traceback.print_exc()
    print(f"tenfuse: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
