"""The style sheet of the page, with colours for light and dark screens, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..dashboard.state.comparison import figures_of, settings_of
from ..dashboard.state.view import View
from ..dashboard.text import figure, setting
from ..events.text import number
from .charts import QUARTERS, text

if TYPE_CHECKING:
    from .data import ReportData

STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1d2430;--quiet:#5d6878;--faint:#667182;--rule:#e4e7ec;
--accent:#1f5ac1;--accent-soft:#1f5ac12e;--rate:#0f8f7a;--alert:#ab2a24;--warn:#855608;--good:#166e3c;
--q1:#3986d5;--q2:#418e81;--q3:#a97a18;--q4:#d95e39}
@media (prefers-color-scheme:dark){:root{--paper:#11141a;--card:#191d25;--ink:#e4e8ef;--quiet:#a3adbb;--faint:#7b8695;
--rule:#2a303b;--accent:#6ea4ff;--accent-soft:#6ea4ff33;--rate:#3cc7ae;--alert:#ff6b61;--warn:#e8ab4a;--good:#54cf86;
--q1:#5fa4ee;--q2:#62c4b3;--q3:#ecbd55;--q4:#ee7650}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1140px;margin:0 auto;padding:28px 20px 48px}
header{display:grid;grid-template-columns:1fr auto;align-items:baseline;gap:0 16px;margin-bottom:20px}
header p{margin:0}
.brand{grid-column:1/-1;color:var(--accent);font-weight:600;font-size:13px;letter-spacing:.04em}
h1{margin:0;font-size:30px;line-height:1.2;letter-spacing:-.02em;overflow-wrap:anywhere}
.what{grid-column:1/-1;color:var(--quiet)}
.state{padding:4px 14px;border-radius:99px;background:var(--accent-soft);color:var(--accent);font-size:14px}
.state.died,.state.diverged,.state.stalled{
background:color-mix(in srgb,var(--alert) 16%,transparent);color:var(--alert)}
.state.finished{background:color-mix(in srgb,var(--good) 16%,transparent);color:var(--good)}
.state.stopped{background:color-mix(in srgb,var(--warn) 18%,transparent);color:var(--warn)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 16px}
.cards div,.panel{background:var(--card);border:1px solid var(--rule);border-radius:12px}
.cards div{padding:14px 16px}
dt{color:var(--quiet);font-size:13px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
dd{margin:2px 0;font-size:24px;font-weight:600;letter-spacing:-.01em}
.cards p{margin:0;color:var(--faint);font-size:12px}
.panel{padding:16px 18px 12px;margin-bottom:16px;min-width:0}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}
@media (max-width:820px){.pair{grid-template-columns:minmax(0,1fr)}
header{grid-template-columns:1fr}.state{justify-self:start}}
h2{margin:0;font-size:17px;letter-spacing:-.01em}
h3{margin:10px 0 0;font-size:13px;font-weight:500;color:var(--quiet)}
.note{margin:2px 0 8px;color:var(--quiet);font-size:13px}
.panel>p{color:var(--quiet);margin:8px 0}.panel>p b{color:var(--ink)}
.panel>p.big{font-size:44px;font-weight:600;line-height:1.1;color:var(--alert);margin:12px 0 0}
svg{display:block;width:100%;height:auto;overflow:visible}
.spark{width:96px;height:20px}
.label{font-size:11.5px;fill:var(--quiet)}.faint{fill:var(--faint)}
.grid{stroke:var(--rule)}.axis,.tick{stroke:var(--faint)}
polyline{fill:none;stroke-linejoin:round;stroke-linecap:round}
.mean{stroke:var(--accent);stroke-width:1.6}.range{fill:var(--accent-soft)}
.best{fill:var(--card);stroke:var(--accent);stroke-width:2}
.rate{stroke:var(--rate);stroke-width:2}.plan{stroke:var(--faint);stroke-width:1.4;stroke-dasharray:5 4}
.metric{stroke:var(--accent);stroke-width:1.8}.dot{fill:var(--accent)}
.metric.held,.metric.m1{stroke:var(--warn)}.dot.m1{fill:var(--warn)}.best.held{stroke:var(--warn)}
.metric.m2{stroke:var(--rate)}.dot.m2{fill:var(--rate)}.metric.m3{stroke:var(--alert)}.dot.m3{fill:var(--alert)}
.scales .range,.scales polyline{pointer-events:none}.zone{fill:transparent;pointer-events:all}
.zone:hover{fill:var(--accent-soft)}
.mark{stroke:var(--faint);stroke-dasharray:2 3}.mark.alert{stroke:var(--alert)}
.label.alert{fill:var(--alert);font-weight:700}.label.event{fill:var(--quiet)}
.q1{fill:var(--q1)}.q2{fill:var(--q2)}.q3{fill:var(--q3)}.q4{fill:var(--q4)}
.area{fill-opacity:.85}.between{stroke:var(--card);stroke-width:1.2}
.cell{fill:var(--accent)}.suspect{fill:none;stroke:var(--alert);stroke-width:1.3}
.bar{fill:var(--accent);fill-opacity:.75}
.key{display:inline-flex;align-items:center;margin-right:10px;background:none}
.key::before{content:"";width:10px;height:10px;border-radius:3px;margin-right:5px;background:var(--faint)}
.key.held::before,.key.m1::before{background:var(--warn)}.key.m0::before{background:var(--accent)}
.key.m2::before{background:var(--rate)}.key.m3::before{background:var(--alert)}
.key.q1::before{background:var(--q1)}.key.q2::before{background:var(--q2)}
.key.q3::before{background:var(--q3)}.key.q4::before{background:var(--q4)}
.scales{position:relative}
.scales input{position:absolute;opacity:0;pointer-events:none}
.scales label{position:relative;top:-54px;float:right;margin-left:6px;padding:2px 12px;border-radius:99px;
border:1px solid var(--rule);color:var(--quiet);font-size:13px;cursor:pointer}
.scales input:focus-visible+label{outline:2px solid var(--accent)}
.scales input:checked+label{background:var(--accent-soft);color:var(--accent);border-color:transparent}
.scales svg{clear:both}.scales .log{display:none}
#log:checked~.log{display:block}#log:checked~.linear{display:none}
.wide{overflow-x:auto}.tall{max-height:420px;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;font-weight:500;color:var(--quiet)}
thead th{position:sticky;top:0;background:var(--card)}
td,th{padding:4px 10px 4px 0;border-bottom:1px solid var(--rule);vertical-align:middle;white-space:nowrap}
td:last-child{white-space:normal;overflow-wrap:anywhere}
.samples td:nth-child(n+3):nth-child(-n+6),.samples th:nth-child(n+3):nth-child(-n+6),
.samples td:first-child{text-align:right}
.samples td:nth-child(2){max-width:340px;overflow:hidden;text-overflow:ellipsis}
.samples td:last-child,.events tr.alert td:nth-child(3){color:var(--alert)}
.incidents td{white-space:normal;vertical-align:top}.incidents td:nth-child(-n+3){white-space:nowrap}
.incidents ol{margin:4px 0;padding-left:18px}.incidents td:last-child{color:var(--ink)}
.suspects td:nth-child(6),.suspects td:nth-child(7),.suspects td:nth-child(8){text-align:right}
.note a{color:var(--accent)}
.events tr.warn td:nth-child(3){color:var(--warn)}.events tr.good td:nth-child(3){color:var(--good)}
.settings th{width:220px;vertical-align:top}
footer{color:var(--faint);font-size:13px;overflow-wrap:anywhere}footer p{margin:2px 0}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:0 0 16px;font-size:13px}
nav a{color:var(--accent);text-decoration:none}nav a:hover{text-decoration:underline}
details{margin-top:6px;font-size:13px}summary{color:var(--quiet);cursor:pointer}
details td,details th,.compared td,.compared thead th{text-align:right}
.phone{display:none}
@media (max-width:1080px){.desk{display:none}.phone{display:block}}
@media (max-width:640px){
main{padding:16px 10px 32px}h1{font-size:24px}.panel{padding:14px 12px 10px;border-radius:10px}
.cards{grid-template-columns:repeat(2,minmax(0,1fr));gap:8px}.cards div{padding:10px 12px}dd{font-size:20px}
.label{font-size:18px}
.scales label{top:0;float:none;display:inline-block;margin:0 6px 6px 0}
.samples td,.samples td:last-child{white-space:nowrap}
:is(.events,.incidents) thead{display:none}:is(.events,.incidents),:is(.events,.incidents) tbody{display:block}
:is(.events,.incidents) tr{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden;
border-bottom:1px solid var(--rule);padding:4px 0}
:is(.events,.incidents) tr:is(:focus,:focus-within){display:block}
:is(.events,.incidents) td{display:inline;border:0;padding:0 6px 0 0;color:var(--quiet)}
:is(.events,.incidents) td:last-child{color:var(--ink)}
.settings,.settings tbody,.settings tr,.settings th,.settings td{display:block;width:auto;white-space:normal}
.settings th{border:0;padding-bottom:0}.settings td{overflow-wrap:anywhere;padding:0;margin-bottom:4px}
.settings tr:not(:focus) td{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden}
}
@media print{
:root{color-scheme:light;--paper:#fff;--card:#fff;--ink:#1d2430;--quiet:#4a5566;--faint:#5d6878;--rule:#d5dae2;
--accent:#1f5ac1;--accent-soft:#1f5ac12e;--rate:#0f8f7a;--alert:#ab2a24;--warn:#855608;--good:#166e3c;
--q1:#3986d5;--q2:#418e81;--q3:#a97a18;--q4:#d95e39}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
@page{margin:14mm}main{max-width:none;padding:0}nav,summary,.scales label{display:none}
.tall{max-height:none;overflow:visible}.wide{overflow:visible}thead th{position:static}
.panel,.cards div,tr{break-inside:avoid}
.panel:has(.events),.panel:has(.samples),.panel:has(.suspects),.panel:has(.settings){break-inside:auto}
.desk{display:none}.phone{display:block}
.pair{grid-template-columns:repeat(2,minmax(0,1fr))}.pair .label{font-size:16px}
h2{break-after:avoid}table{font-size:11px}td,th{padding:2px 6px 2px 0}
}
"""


def wide_table(kind: str, columns: Iterable[str], rows: Iterable[str], *, is_tall: bool = False) -> str:
    """A table in a frame that scrolls, of names of columns and of rows that are HTML already."""
    head = "".join(f"<th>{name}</th>" for name in columns)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead>{"".join(rows)}</table>'
    return f'<div class="wide{" tall" * is_tall}">{table}</div>'


MOST_ROWS = 25


def opening(columns: Sequence[str], rows: Iterable[Sequence[object]], what: str = "numbers") -> str:
    """A table that is closed at first; of many rows, a few at equal distances and the last."""
    listed = list(rows)
    if not listed:
        return ""
    stride = max(1, -(-len(listed) // MOST_ROWS))
    chosen = listed[::stride] + ([listed[-1]] if (len(listed) - 1) % stride else [])
    head = "".join(f"<th>{text(name, 40)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in chosen)
    table = f"<table><thead><tr>{head}</tr></thead>{body}</table>"
    return f'<details><summary>{what}</summary><div class="wide">{table}</div></details>'


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else text(f"{value:,}" if isinstance(value, int) else value, 80)


def loss_numbers(view: View) -> str:
    """The curve of the loss."""
    return opening(("to step", "lowest", "mean", "highest"), view.loss.rows())


def rate_numbers(view: View) -> str:
    """The learning rates."""
    return opening(("to step", "rate"), ((step, mean) for step, _, mean, _ in view.lr.rows()))


def metric_numbers(view: View, names: Sequence[str]) -> str:
    """The values of metrics that share a chart."""
    if len(names) == 1:
        return opening(("step", "value"), ((point.step, point.value) for point in view.metrics[names[0]]))
    rows = ((text(name, 40), point.step, point.value) for name in names for point in view.metrics[name])
    return opening(("metric", "step", "value"), rows)


def ribbon_numbers(data: ReportData) -> str:
    """The bounds of the quarters."""
    columns = ("step", "lowest", *(f"{name} to" for name in QUARTERS))
    return opening(columns, ((int(row[0]), *row[1:].tolist()) for row in data.bounds))


def histogram_numbers(view: View) -> str:
    """The bins of both histograms."""
    survey = view.survey
    if survey is None:
        return ""
    uses = opening(("bin", "samples"), enumerate(survey.uses_counts, start=1), "numbers: uses")
    return uses + opening(("bin", "samples"), enumerate(survey.loss_counts, start=1), "numbers: losses")


def comparison(views: Sequence[View], names: Sequence[str]) -> str:
    """The figures of runs, the best one in bold, and the settings that differ."""
    rows = []
    for row in figures_of(views):
        cells = [figure(value) for value in row.values]
        marked = [f"<b>{cell}</b>" if place == row.better else cell for place, cell in enumerate(cells)]
        rows.append((text(row.name, 60), *marked))
    rows += [(text(one.name, 60), *(text(setting(value)) for value in one.values)) for one in settings_of(views)]
    body = (f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return wide_table("compared", ("", *(text(name, 40) for name in names)), body)
