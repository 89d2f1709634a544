"""Lines of a kernel's body, and names for its values."""

from __future__ import annotations


class Writer:
    """Collects lines at the current depth; a value that was computed before is not again."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self._names = 0
        self._known: list[dict[str, str]] = [{}]

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def let(self, text: str) -> str:
        """A name for the value of ``text``."""
        if text.isidentifier():
            return text
        for scope in self._known:
            if text in scope:
                return scope[text]
        name = f"v{self._names}"
        self._names += 1
        self.line(f"{name} = {text}")
        self._known[-1][text] = name
        return name

    def variable(self, text: str) -> str:
        """A name of its own that starts as ``text`` and may be assigned again."""
        name = f"x{self._names}"
        self._names += 1
        self.line(f"{name} = {text}")
        return name

    def counter(self) -> str:
        """The name of a loop's variable."""
        self._names += 1
        return f"m{self._names - 1}"

    def open(self, header: str) -> None:
        """A block; what is computed in it is not known behind it."""
        self.line(header)
        self.depth += 1
        self._known.append({})

    def close(self) -> None:
        self.depth -= 1
        self._known.pop()


__all__ = ["Writer"]
