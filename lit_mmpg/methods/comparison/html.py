"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_mmpg.methods.comparison.plots import plots
from lit_mmpg.methods.comparison.results import Results
from lit_mmpg.methods.comparison.style import STYLE
from lit_mmpg.methods.comparison.view import (
    CHOSEN,
    REUSE,
    SHOWN_REUSE,
    SPLITS,
    chosen_rows,
    claim_costs,
    claim_text,
    columns,
    cost_notes,
    cost_rows,
    environment_lines,
    introduction,
    method_lines,
    method_sentences,
    split_rows,
)
from lit_mmpg.report import format_row
from lit_mmpg.texts import escape_html as escape

CLASSES = {"holds": "holds", "does not hold": "fails", "undecided": "undecided", "not tested": "untested"}


def render(results: Results) -> str:
    """The whole page."""
    title = escape(results.comparison.title)
    body = [
        f"<h1>{title}</h1>",
        *(f"<p>{escape(line)}</p>" for line in introduction(results)),
        _claims(results),
        _main_table(results),
        _figures(results),
        _costs(results),
        _other_splits(results),
        _seeds(results),
        _what(results),
        _matrix(results),
        _how(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(p for p in body if p)
        + "\n</body></html>\n"
    )


def _figures(results: Results) -> str:
    figures = "".join(
        f"<figure><h3>{escape(heading)}</h3><figcaption>{escape(text)}</figcaption>"
        f'<div class="scroll">{picture}</div></figure>'
        for heading, text, picture in plots(results)
    )
    return f'<div class="figures">{figures}</div>' if figures else ""


def _row_name(name: str) -> str:
    """A name that a narrow page may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _claims(results: Results) -> str:
    if not results.verdicts:
        return ""
    entries = []
    for i in range(len(results.verdicts)):
        verdict, sentence, lines = claim_text(results, i)
        details = "".join(f"<div>{escape(line)}</div>" for line in lines)
        entries.append(f'<li class="{CLASSES[verdict]}"><b>{verdict}</b>{escape(sentence)}{details}</li>')
    costs = "".join(f'<p class="soft">{escape(line)}</p>' for line in claim_costs(results))
    return f'<h2>What holds and what does not</h2><ul class="claims">{"".join(entries)}</ul>{costs}'


def _main_table(results: Results) -> str:
    shown = columns(results)
    strong = {claim.method for claim in results.comparison.claims}
    head = "".join(f'<th class="wide" title="{escape(c.explain)}">{escape(c.title)}</th>' for c in shown)
    lines = []
    for i, name in enumerate(results.names, 1):
        cells = "".join(f'<td><a href="{_target(results, name)}">{_interval(c.cell(name))}</a></td>' for c in shown)
        css = ' class="strong"' if name in strong else ""
        kind = escape(results.settings.get(name, ""))
        first = f'<td><span class="n">{i}</span>{_row_name(name)}</td><td class="text">{kind}</td>'
        lines.append(f"<tr{css}>{first}{cells}</tr>")
    lines += [
        f'<tr><td>{_row_name(name)}</td><td class="text" colspan="{len(shown) + 1}">n/a: {escape(reason)}</td></tr>'
        for name, reason in results.not_applicable.items()
    ]
    split = SPLITS.get(results.splits[0], results.splits[0])
    return (
        f'<h2 id="table">All rows</h2><p class="soft">On {escape(split)}. In brackets: 95 % interval. Device costs are '
        f"per answered clip (with all its questions), one adaptation serving {SHOWN_REUSE} clips; bytes and cloud time "
        "are of one adaptation. A value leads to its MLflow run, or to the runs of its seeds below.</p>"
        f'<div class="scroll"><table><thead><tr><th>row</th><th class="text">kind</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _interval(text: str) -> str:
    value, bracket, rest = text.partition(" [")
    return escape(value) + (f' <span class="ci">[{escape(rest)}</span>' if bracket else "")


def _target(results: Results, name: str) -> str:
    runs = results.links.get(name, {})
    if len(runs) == 1:
        return _run_link(results, next(iter(runs.values()))) or f"#seeds-{escape(name)}"
    return f"#seeds-{escape(name)}"


def _run_link(results: Results, run: Mapping[str, str | None]) -> str:
    """Address of a run in MLflow's page: of the tracking server, or where ``lit-mmpg ui`` serves the local store."""
    run_id = run.get("test_run_id") or run.get("run_id")
    if not run_id or not results.store:
        return ""
    uri = results.store["uri"]
    base = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return escape(f"{base}/#/experiments/{results.store['experiment_id']}/runs/{run_id}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table of plain text; the first ``text`` columns are left-aligned."""

    def cell(tag: str, i: int, value: str) -> str:
        css = ' class="text long"' if 0 < i < text else ' class="wide"' if tag == "th" and i else ""
        return f"<{tag}{css}>{escape(value) if i else _row_name(value)}</{tag}>"

    head = "".join(cell("th", i, value) for i, value in enumerate(header))
    body = "".join(f"<tr>{''.join(cell('td', i, value) for i, value in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _costs(results: Results) -> str:
    header, rows = cost_rows(results)
    if not rows:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in cost_notes(results))
    spread = ", ".join(map(str, REUSE))
    return (
        "<h2>What a device pays</h2><p>Per answered clip with all its questions, from pixels to answer. One adaptation "
        f"serves several clips; its cost is spread over them, here over {spread}.</p>"
        f'{_table(header, rows)}<ul class="plain soft">{notes}</ul>'
    )


def _other_splits(results: Results) -> str:
    header, rows = split_rows(results)
    return f"<h2>Other groups of devices</h2>{_table(header, rows)}" if rows else ""


def _seeds(results: Results) -> str:
    split = results.splits[0]
    seeds = sorted({seed for runs in results.links.values() for seed in runs})
    lines = []
    for name in results.names:
        row = results.find(name, split, results.primary)
        values = (row or {}).get("per_seed") or []
        shown = dict(zip(results.links.get(name, {}), values, strict=False))
        cells = []
        for seed in seeds:
            if seed not in shown:
                cells.append("<td></td>")
                continue
            text = escape(format_row({"metric": results.primary, "value": shown[seed]}))
            link = _run_link(results, results.links[name][seed])
            cells.append(f'<td><a href="{link}">{text}</a></td>' if link else f"<td>{text}</td>")
        lines.append(f'<tr id="seeds-{escape(name)}"><td>{_row_name(name)}</td>{"".join(cells)}</tr>')
    head = "".join(f"<th>seed {seed}</th>" for seed in seeds)
    link = "Each value leads to its MLflow run (start the page with <code>lit-mmpg ui</code>)." if results.store else ""
    return (
        f'<h2>Every seed</h2><p class="soft">{link}</p><div class="scroll"><table><thead><tr><th>row</th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _what(results: Results) -> str:
    rows = [[name, text] for name, text in method_sentences(results).items() if text]
    return f"<h2>What the rows are</h2>{_table(['row', 'what it is'], rows, 2)}" if rows else ""


def _matrix(results: Results) -> str:
    if not results.applicability:
        return ""
    header = list(results.applicability[0])
    rows = [[str(row[name]) for name in header] for row in results.applicability]
    return (
        f"<h2>Which method applies to which task</h2>{_table([h.replace('_', ' ') for h in header], rows, len(header))}"
    )


def _how(results: Results) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in method_lines(results))
    where = "; ".join(environment_lines(results))
    rows = chosen_rows(results)
    chosen = f"<h2>Settings chosen on validation devices</h2>{_table(CHOSEN, rows, len(CHOSEN))}" if rows else ""
    return (
        f'{chosen}<h2>How it was measured</h2><ul class="plain">{lines}</ul>'
        f'<p class="soft"><small>{escape(where)}</small></p>'
    )
