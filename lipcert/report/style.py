"""The style sheet of the HTML report: light, dark and print, from one set of names."""

from typing import get_args

from lipcert.certificate import Verdict

LIGHT = {
    "page": "#ffffff", "panel": "#f5f7fa", "text": "#1a222d", "muted": "#505c6b",
    "rule": "#d3dae2", "certified": "#0a5fc2", "estimated": "#7a4a00", "attacked": "#b23c0a",
    "unknown": "#5d6875", "falsified": "#b3211c", "pass": "#17693a", "warn": "#7a5200",
    "fail": "#b3211c",
}  # fmt: skip
DARK = {
    "page": "#11161d", "panel": "#1a212b", "text": "#e7ecf2", "muted": "#a8b4c1",
    "rule": "#364252", "certified": "#72b3ff", "estimated": "#f0b65a", "attacked": "#ffa06b",
    "unknown": "#a3afbc", "falsified": "#ff8f86", "pass": "#74d39a", "warn": "#f0b65a",
    "fail": "#ff8f86",
}  # fmt: skip

_RULES = """
* { box-sizing: border-box }
html { color-scheme: light dark; -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 74rem; padding: 1.25rem clamp(.8rem, 3vw, 2rem) 3rem;
  background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif }
a { color: var(--certified) }
.skip { position: absolute; left: -99rem } .skip:focus { left: 1rem; top: .5rem }
:focus-visible { outline: 3px solid var(--certified); outline-offset: 2px }
h1 { font-size: clamp(1.3rem, 4vw, 1.9rem); line-height: 1.2; margin: .3rem 0;
  overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem } h3 { font-size: 1rem; margin: 1rem 0 .3rem }
p { margin: .3rem 0 } .muted, figcaption { color: var(--muted) }
.banner { border: 2px solid var(--estimated); color: var(--estimated); padding: .5rem .8rem;
  border-radius: .5rem; font-weight: 700 }
.verdict { border: 2px solid currentColor; border-radius: .5rem; padding: .6rem .9rem;
  margin: .8rem 0; overflow-wrap: anywhere }
.verdict strong { font-size: 1.35rem; margin-right: .4rem } .verdict span { font-weight: 400 }
code { font: .85em/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
summary { cursor: pointer; padding: .3rem 0 } dt { font-weight: 600; margin-top: .5rem }
dd { margin: 0 0 0 1rem; color: var(--muted) }
.filter { border: 0; margin: 0; padding: 0; min-width: 0 } .filter legend { padding: 0 }
.filter label { display: inline-block; margin: .1rem 1rem .3rem 0; cursor: pointer }
__FILTERS__
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 11.5rem), 1fr));
  gap: .8rem; margin: 1.2rem 0; padding: 0; list-style: none }
.cards li, figure, .panel { background: var(--panel); border: 1px solid var(--rule);
  border-radius: .6rem; padding: .8rem 1rem; margin: 0 }
.cards strong { display: block; font-size: 1.7rem; line-height: 1.25;
  font-variant-numeric: tabular-nums }
.figures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)) }
figcaption { font-size: .9rem; margin-top: .4rem }
svg { display: block; width: 100%; height: auto; max-width: 40rem }
svg text { fill: var(--muted); font: 13px system-ui, sans-serif }
.end { text-anchor: end } .middle { text-anchor: middle }
.grid { stroke: var(--rule); fill: none } .axis { stroke: var(--muted); fill: none }
.line { fill: none; stroke-width: 2.5 } .guide { stroke: var(--muted); stroke-width: 1 }
.line.attacked { stroke-dasharray: 7 4 }
.dots { fill: none; stroke-width: 4.5; stroke-linecap: round }
.dots.unknown, .dots.timeout { stroke-linecap: square; stroke-width: 3.5 }
.dots.misclassified { stroke-width: 2.5 } .dots.falsified { stroke-linecap: square;
  stroke-width: 5 }
.ring { fill: var(--panel); stroke-width: 2.5 }
.line.certified, .dots.certified, .ring.certified { stroke: var(--certified) }
.line.estimated, .dots.estimated, .ring.estimated { stroke: var(--estimated) }
.bar.certified { fill: var(--certified) } .bar.estimated { fill: var(--estimated) }
.line.attacked { stroke: var(--attacked) } .dots.falsified { stroke: var(--falsified) }
.dots.unknown, .dots.timeout { stroke: var(--unknown) }
.dots.misclassified, .dots.attacked { stroke: var(--attacked) }
.legend { display: inline-flex; align-items: center; gap: .35rem; margin-right: .9rem }
.legend svg { width: 1.6rem; flex: none } .key { margin-bottom: .2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
.caption { color: var(--muted); font-size: .9rem }
th, td { text-align: left; padding: .32rem .7rem .32rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top }
th { font-weight: 600 } .number { text-align: right; white-space: nowrap }
.wrap td, .wrap th { overflow-wrap: anywhere } .wrap th { white-space: nowrap }
.pass { color: var(--pass) } .warn { color: var(--warn) } .fail { color: var(--fail) }
.pass, .warn, .fail { font-weight: 700 }
.images { display: grid; gap: .8rem; margin: .4rem 0; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) }
.images li:has(img + img) { grid-column: span 2 }
.images li { font-size: .85rem; color: var(--muted); line-height: 1.3 }
.images img { width: 80px; height: 80px; object-fit: contain; image-rendering: pixelated;
  display: inline-block; margin-right: .2rem; border: 1px solid var(--rule); background: #000 }
.images span { display: block }
@media (max-width: 36rem) { svg text { font-size: 17px } table { font-size: .9rem }
  .cards li, figure, .panel { padding: .6rem }
  .stack thead { display: none }
  .stack tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--rule) }
  .stack th, .stack td { display: inline-block; border: 0; padding: 0 .9rem 0 0;
    text-align: left; white-space: normal; overflow-wrap: anywhere }
  .stack td::before { content: attr(data-name) " "; color: var(--muted) } }
@media print { body { max-width: none; font-size: 12px } .skip { display: none }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  figure, tr, .images li { break-inside: avoid } h2, h3, .caption, .muted { break-after: avoid } }
"""


# A button that is on leaves the rows of its verdict alone.
_FILTERS = "\n".join(
    f".filter:has(#only-{name}:checked) tbody tr:not(.is-{name}) {{ display: none }}"
    for name in get_args(Verdict)
)


def style_sheet() -> str:
    """The rules, with dark colours for those who prefer them, on screens alone."""
    return (
        f":root {{ {_variables(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}"
        f"{_RULES.replace('__FILTERS__', _FILTERS)}"
    )


def _variables(colours: dict[str, str]) -> str:
    return "; ".join(f"--{name}: {value}" for name, value in colours.items())
