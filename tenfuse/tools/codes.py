"""The table of refusal codes as Markdown: ``make docs`` writes ``docs/reasons.md`` with it."""

from __future__ import annotations

from tenfuse.reasons import codes

_HEAD = """\
# Why a loop is kept

Every loop that tenfuse sees is fused with evidence or kept with one of these codes. Codes are
stable: one never changes its meaning. TF1xx come from capture, TF2xx from the step, TF3xx from
algebra and plan, TF4xx from emission and runtime, TF9xx are faults inside tenfuse. The report
names your line and often replaces the cause below by a more exact one.

| code | cause | remedy |
|---|---|---|
"""


def table() -> str:
    return _HEAD + "".join(f"| {c.code} | {c.cause} | {c.remedy} |\n" for c in codes())


if __name__ == "__main__":
    print(table(), end="")
