"""The frame of the report: one HTML page with its own style, nothing loaded."""

import html
import string
from collections.abc import Iterable

_CSS = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5d6672; --paper: #fff; --tint: #f4f6f8;
  --rule: #d9dee4; --good: #00704f; --bad: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa4b0; --paper: #15181c;
  --tint: #1e2329; --rule: #363d46; --good: #4cc9a0; --bad: #ff9a57; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; } p { max-width: 48rem; }
.soft { color: var(--soft); } small.soft { display: block; margin: .4rem 0; }
.note { border-left: 4px solid var(--bad); background: var(--tint); padding: .5rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th { font-weight: 600; } tbody th { font-weight: 400; } th:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; white-space: normal;
  text-wrap: balance; }
.settings td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
code, pre, .settings table, .tokens { font-family: ui-monospace, monospace; }
code { background: var(--tint); padding: .05rem .3rem; border-radius: 3px; }
img { width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 6px; }
details { margin: .4rem 0; } summary { cursor: pointer; }
.rollout { border: 1px solid var(--rule); border-radius: 6px; padding: .6rem .9rem;
  margin: .7rem 0; }
.rollout p { margin: .2rem 0; max-width: none; overflow-wrap: anywhere; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: .8rem;
  margin-top: .4rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--tint); padding: .6rem;
  border-radius: 4px; max-height: 22rem; overflow-y: auto; margin: .3rem 0; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; margin-top: .5rem; }
.tokens span, .key span { border-radius: 2px; padding: .12em 1px; }
.tokens .broken { outline: 2px dashed var(--bad); }
.right { color: var(--good); font-weight: 600; } .wrong { color: var(--bad); font-weight: 600; }
"""

_PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def render(title: str, sections: Iterable[tuple[str, str]]) -> str:
  """A page of (heading, HTML) sections; one without content is left out, with its heading.

  Title and headings are texts; the HTML of a section must be escaped by who wrote it.
  """
  body = '\n'.join(
    (f'<h2>{html.escape(heading)}</h2>\n' if heading else '') + content
    for heading, content in sections
    if content
  )
  return _PAGE.substitute(title=html.escape(title), css=_CSS, body=body)
