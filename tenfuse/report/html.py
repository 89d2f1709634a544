"""The HTML form of a ``Report``: one page that needs nothing else, light or dark.

Takes a ``Report``; leaves a string.  Everything from the user's program is escaped.
"""

from __future__ import annotations

from html import escape

from tenfuse.report.report import LoopReport, Report, counted
from tenfuse.report.text import facts, margin

_STYLE = """
:root { color-scheme: light dark; --text: #1d2126; --dim: #69727d; --page: #fbfbfa; --card: #fff;
  --edge: #e3e5e8; --fused: #15803d; --kept: #b45309; --code: #f5f6f7; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --dim: #949daa; --page: #131518;
  --card: #1a1d21; --edge: #2d3238; --fused: #4ade80; --kept: #fbbf24; --code: #15181b; } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1rem; margin: 0 }
p.sum { margin: 0 0 2rem; color: var(--dim) }
article { background: var(--card); border: 1px solid var(--edge); border-left: 4px solid var(--tone);
  border-radius: 8px; padding: 1rem 1.25rem 1.1rem; margin: 0 0 1.25rem }
article.fused, b.fused { --tone: var(--fused) } article.kept, b.kept { --tone: var(--kept) }
header { display: flex; gap: .75rem; align-items: baseline; flex-wrap: wrap }
b.fused, b.kept { color: var(--tone); font-size: .8rem; letter-spacing: .04em; text-transform: uppercase }
.steps { color: var(--dim); margin-left: auto }
pre, code, td.line { font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.source { overflow-x: auto; background: var(--code); border-radius: 6px; margin: .8rem 0; padding: .5rem 0 }
.source table { border-collapse: collapse } .source td { padding: 0 .6rem; white-space: pre }
.source td.no { color: var(--dim); text-align: right; user-select: none; border-right: 3px solid transparent }
.source tr.in td.no { border-right-color: var(--tone) }
.source tr.stop { background: color-mix(in srgb, var(--kept) 18%, transparent) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 }
dt { color: var(--dim) } dd { margin: 0; overflow-wrap: anywhere }
details { margin-top: .8rem } summary { cursor: pointer; color: var(--dim) }
details pre { overflow-x: auto; background: var(--code); border-radius: 6px; padding: .8rem 1rem;
  margin: .5rem 0 0 }
"""


def to_html(report: Report) -> str:
    title = escape(f"tenfuse: {report.model}" if report.model else "tenfuse")
    body = "".join(_article(loop) for loop in report.loops)
    body += "".join(f"<p><b class=kept>graph break</b> {escape(why)}</p>" for why in report.breaks)
    for number, (before, after) in enumerate(report.graphs):
        body += _folded(f"graph {number}, before", before) + _folded(f"graph {number}, after", after)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><p class=sum>{_summary(report)}</p>{body}</body></html>\n"
    )


def _summary(report: Report) -> str:
    if not report.loops:
        return "No loop over time was seen."
    return f"{counted(len(report.loops), 'loop')} seen, {len(report.fused)} fused, {len(report.kept)} kept."


def _article(loop: LoopReport) -> str:
    steps = f"<span class=steps>{counted(loop.steps, 'step')}</span>" if loop.steps else ""
    rows = "".join(_row(loop, *row) for row in margin(loop))
    source = f"<div class=source><table>{rows}</table></div>" if rows else ""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{_value(name, value)}</dd>" for name, value in facts(loop))
    kernels = "".join(_folded(f"{name} ({language})", text) for name, language, text in loop.kernels)
    return (
        f"<article class={loop.status}><header><b class={loop.status}>{loop.status}</b>"
        f'<h2 title="{escape(loop.file)}">{escape(loop.span)}</h2>{steps}</header>'
        f"{source}<dl>{items}</dl>{kernels}</article>"
    )


def _row(loop: LoopReport, number: int, text: str, mark: str) -> str:
    kind = "stop" if number == loop.blocker else "in" if mark.strip() else "out"
    return f"<tr class={kind}><td class=no>{number}</td><td class=line>{escape(text)}</td></tr>"


def _value(name: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if name in ("formula", "line") else escape(value)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
