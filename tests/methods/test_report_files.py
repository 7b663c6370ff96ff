"""The report: every form says the same, stands alone, and reads NaN, missing rows and odd names."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.methods.compare import report_stem
from lit_mmpg.methods.comparison.cells import CellStore
from lit_mmpg.methods.comparison.page import chosen_rows, figures, format_flops, format_joules, format_seconds
from lit_mmpg.methods.comparison.plan import AdaptedRow, Claim, Comparison, TrainedRun
from lit_mmpg.methods.comparison.progress import Progress
from lit_mmpg.methods.comparison.results import Results, collect
from lit_mmpg.methods.comparison.writing import small_result, write_report
from lit_mmpg.pages.blocks import Figure, Heading
from lit_mmpg.report import json_ready
from lit_mmpg.results import markdown as small_table
from lit_mmpg.texts import duration
from tests.methods.synthetic import cell, merged, seeds

COST = {"answer_flops": 2e6, "adapt_flops": 8e6, "answer_s": 1e-3, "adapt_s": 4e-3, "answer_j": 0.02, "adapt_j": 0.08}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    runs = {
        "static": TrainedRun("a.yaml", about="The model <as it is>."),
        "ours": TrainedRun("b.yaml", also={"other_device": "shuffled", "typo": "shufled"}),
    }
    adapted = {"tent": AdaptedRow("tent", "static"), "majority": AdaptedRow("majority", "static")}
    claims = (
        Claim("beats", "Ours beats static & more.", "ours", ("static",), max_device_flops_ratio=1.5),
        Claim("absent", "Nobody measured this.", "ours", ("missing_row",)),
    )
    comparison = Comparison(
        tmp_path / "c.yaml", (0, 1, 2), runs, adapted=adapted, claims=claims, title="A <title>", about="About it."
    )
    shared = {"run_id": "r0", "test_run_id": "t0", "uri": "sqlite:///x.db"}
    cells = {
        "static": [
            merged(
                cell({"static": v}, seed=s, costs={"static": {**COST, "adapt_flops": 0.0}}, **shared),
                cell({"static": v}, seed=s, split="test_clean"),
            )
            for s, v in enumerate(seeds(0.6))
        ],
        "ours": [
            cell({"own": a, "shuffled": b}, seed=s, costs={"own": {**COST, "how": ["Counted."]}}, **shared)
            for s, (a, b) in enumerate(zip(seeds(0.9, first=10), seeds(0.5, first=20), strict=True))
        ],
        "tent": [
            cell({"tent": v}, seed=s, notes={"setting": "online", "selection": {"options": {"steps": 4 ** (s % 2)}}})
            for s, v in enumerate(seeds(0.62, first=30))
        ],
        "majority": [cell({}, notes={"setting": "floor", "not_applicable": "no answers <here>"})],
    }
    store = CellStore(tmp_path / "cells")
    for name, made in cells.items():
        for one in made:
            store.count_read(name, one.seed, "digest", "test")
    store.count_read("ours", 0, "digest", "test")
    with (store.folder / "test_reads.jsonl").open("a") as file:
        file.write('{"row": "to')  # killed in the middle of a line
    return collect(comparison, cells, store.reads())


class Page(HTMLParser):
    """Collects what a browser would load, and whether tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note addresses."""
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if tag in ("link", "img", "iframe", "object") or (tag == "script" and values):
            self.loads.append(tag)
        if tag == "a":
            self.links.append(values.get("href") or "")

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text.append(data)


def test_all_forms_are_written_and_say_the_same(results: Results, tmp_path: Path) -> None:
    files = write_report(results, tmp_path / "deep" / "report")
    names = ["report.html", "report.md", "report.csv", "report.json", "report.result.json"]
    assert [path.name for path in files] == names
    page, markdown, table, data, small = (path.read_text() for path in files)
    kept = json.loads(small)
    assert kept["command"].startswith("lit-mmpg compare --config configs/experiment/") and kept["machine"]
    assert [row[0] for row in kept["rows"]] == results.names and len(kept["verdicts"]) == len(results.verdicts)
    assert all(len(row) == len(kept["columns"]) for row in kept["rows"]) and kept["seeds"] and small_table(kept)
    parser = Page()
    parser.feed(page)
    text = " ".join("".join(parser.text).split())
    assert not parser.loads and "@import" not in page and "url(" not in page
    assert "A <title>" in text and "The model <as it is>." in text and "no answers <here>" in text
    assert all(link[1:] in parser.ids for link in parser.links if link.startswith("#")) and parser.links
    value = next(r for r in json.loads(data)["rows"] if r["method"] == "ours" and r["metric"] == "accuracy")["value"]
    lines = list(csv.DictReader(io.StringIO(table)))
    mine = next(r for r in lines if (r["method"], r["metric"], r["split"]) == ("ours", "accuracy", "test_unseen"))
    assert float(mine["value"]) == value and float(mine["device_flops_at_16"]) == 2.5e6
    assert mine["setting"] == "trained" and mine["per_seed"].count(";") == 2
    for form in (text, markdown):
        assert f"{100 * value:.1f}" in form
        assert "holds" in form and "not tested" in form and "row 'missing_row' was not measured" in form
        assert "read 11 times" in form and "1 of them repeated" in form
        assert form.count("Cost of ours") == 1  # two claims are about it
    assert chosen_rows(results) == [["tent", "steps 1", "0, 2"], ["tent", "steps 4", "1"]]
    assert "| tent | steps 1 | 0, 2 |" in markdown and "Settings chosen on validation devices" in text


def test_a_small_result_names_the_commits_that_made_its_rows(results: Results) -> None:
    assert not results.commits and small_result(results)["commit"] == results.environment["commit"]
    one = small_result(dataclasses.replace(results, code={"ours": {0: {"commit": "a" * 40}}}))
    assert one["commit"] == "a" * 40
    several = small_result(
        dataclasses.replace(results, code={"ours": {0: {"commit": "a" * 40}, 1: {"commit": "b" * 40}}})
    )
    assert several["commit"] == results.environment["commit"]
    assert all(row["low"] is not None and row["metric"].startswith("accuracy") for row in one["values"])
    assert "--only" not in one["command"]
    part = small_result(dataclasses.replace(results, comparison=results.comparison.with_rows(("static", "tent"))))
    assert part["command"].endswith(" --only static tent")


def test_verdicts_come_first_in_order_and_rows_carry_their_kind(results: Results) -> None:
    assert [v.verdict for v in results.verdicts] == ["holds", "not tested"]
    assert results.settings == {"static": "trained", "ours": "trained", "other_device": "control", "tent": "online"}
    assert results.not_applicable == {
        "majority": "no answers <here>",
        "typo": "the test of ours reports no 'shufled', but own, shuffled",
    }
    assert list(results.devices["ours"].values()) == sorted(results.devices["ours"].values())
    lines = results.verdict_lines()
    assert "Ours beats static & more." in lines[1] and "at 1.02 times its device FLOPs" in lines[2]


def test_plots_are_well_formed_and_hold_every_row(results: Results) -> None:
    blocks = list(figures(results))
    drawn = [block.chart for block in blocks if isinstance(block, Figure)]
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    wanted = ["Differences from static", "Quality against bytes", "Quality against device time", "Every device"]
    assert headings == wanted and len(drawn) == 4
    for picture in drawn:
        ElementTree.fromstring(picture)
    assert all(name in drawn[0] for name in ("ours", "other_device", "tent")) and drawn[1].count('class="point"') == 4
    assert drawn[3].count("<title>") == 3 * 12


def test_numbers_for_people() -> None:
    assert (format_flops(2.5e6), format_flops(None), format_flops(12)) == ("2.5 M", "", "12")
    assert (format_seconds(0.0015), format_seconds(2), format_joules(0.02)) == ("1.5 ms", "2 s", "20 mJ")
    assert [duration(s) for s in (45, 600, 9000)] == ["45 s", "10 min", "2.5 h"]
    assert json_ready({"a": [float("nan"), 1.0], 3: float("inf")}) == {"a": [None, 1.0], "3": None}


def test_time_to_go_counts_a_row_with_its_own_time() -> None:
    progress = Progress(["static", "ours"] * 2)
    assert progress.left() is None
    for name, seconds in (("static", 10.0), ("ours", 30.0)):
        progress.start(name, 0)
        progress.done(name, seconds)
    assert progress.left() == 40.0
    progress.start("static", 1)
    progress.done("static", 20.0)
    assert progress.left() == 30.0


def test_the_output_is_a_folder_or_a_json_file(tmp_path: Path) -> None:
    assert report_stem(None, tmp_path) == tmp_path / "report"
    assert report_stem("out/table.json", tmp_path) == Path("out/table")
    assert report_stem("out", tmp_path) == Path("out/report")
    with pytest.raises(UserError, match="name a folder"):
        report_stem("table.csv", tmp_path)
