"""Self-contained HTML pages of tables, light and dark: no script, no request."""

import hashlib
import html
from collections.abc import Collection, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --paper: #faf9f6; --line: #e0ddd5; --bad: #b91c1c; --quiet: #6b7280 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --paper: #181a1d; --line: #33373d; --bad: #f87171; --quiet: #9ca3af } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right } td.n, td:first-child { white-space: nowrap }
.failed, .warn { color: var(--bad) } .empty { color: var(--quiet) }
caption { text-align: left; font-weight: 600; padding: .6rem 0 }
pre { white-space: pre-wrap }
"""


def page(title: str, body: str, heading: str = "") -> str:
    """Return a page with a heading (by default its title) and a body of HTML."""
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(heading or title)}</h1>{body}</html>\n"
    )
    return f"{text}<!-- sha256 of the above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_intact(page: bytes) -> bool:
    """Return whether a page has the digest that it ends with. One of an older Kiln has none, and must be complete."""
    text, separator, end = page.rpartition(b"<!-- sha256 of")
    if not separator:
        return page.endswith(b"</html>\n")
    return separator + end == f"<!-- sha256 of the above: {hashlib.sha256(text).hexdigest()} -->\n".encode()


def table(caption: str, rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return a table, without a caption if that is empty. The first row is its head. Columns in `left` are text."""

    def cells(row: Sequence[str], tag: str) -> str:
        scope = " scope=col" if tag == "th" else ""
        classes = ["" if n in left else ' class="n"' for n in range(len(row))]
        return "".join(f"<{tag}{c}{scope}>{html.escape(cell)}</{tag}>" for cell, c in zip(row, classes, strict=True))

    head, *body = rows
    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<tr>{cells(head, 'th')}</tr>{lines}</table>"
