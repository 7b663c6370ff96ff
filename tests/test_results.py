from __future__ import annotations

import re
from pathlib import Path

import pytest

from lit_mmpg import results
from lit_mmpg.errors import UserError
from lit_mmpg.results import (
    HEADLINES,
    PART,
    fill,
    load,
    main_results,
    markdown,
    page,
    result,
    typed_results,
    write_result,
)

ROOT = Path(__file__).parents[1]


def test_every_table_of_the_documents_is_that_of_its_file() -> None:
    found = load(ROOT / results.FOLDER)
    assert found, "there are results"
    for name, entry in found.items():
        assert entry["command"] and entry["commit"] and "dirty" not in entry["commit"], name
        assert entry["machine"] and all(len(row) == len(entry["columns"]) for row in entry["rows"]), name
    written = (ROOT / results.FOLDER / "README.md").read_text(encoding="utf-8")
    assert written == page(found), "run make results"
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert fill(text, found, path.name) == text, f"{path.name}: run make results"
        for name in re.findall(r"docs/results/README\.md#([\w-]+)", text):
            assert name in found, f"{path.name} leads to results '{name}', which have no file"


def test_no_result_is_typed_by_hand() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "jetson").glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(documents) > 3
    for path in documents:
        if path != ROOT / results.FOLDER / "README.md":  # made as a whole, as the test above checks
            assert typed_results(path.read_text(encoding="utf-8")) == [], path
    table = "| row | x |\n|---|---|\n| a | {} |\n"
    for cell in ("85.5", "**+0.003**", "12 %", "2.8 KiB", "97.5 [96.7, 98.3]", "gains -0.002 [-0.008, +0.003] here"):
        assert typed_results("before\n\n" + table.format(cell)) == ["| row | x |"], cell
    for cell in ("JetPack 6.2 or 7.2", "4000", "`drift:0.2` asks", "10 s each"):
        assert typed_results(table.format(cell)) == [], cell
    assert typed_results("It gains.\nIt gains +1.5 [+0.4, +2.7].") == ["It gains +1.5 [+0.4, +2.7]."]
    assert typed_results("`--seeds [0, 1]`") == []
    assert typed_results(f"<!-- results: t -->\n\n{table.format('85.5')}\n<!-- end of results -->") == []


def test_a_result_becomes_a_table_and_a_part_of_a_document(tmp_path: Path) -> None:
    entry = result("T", "lit-mmpg x", ["row", "a|b"], [["ours", 1.5], ["none", None]], "c" * 40, ["A note."], seeds=[0])
    write_result(tmp_path / "t.json", entry)
    loaded = load(tmp_path)
    assert loaded == {"t": entry} and loaded["t"]["machine"]
    shown = markdown(entry)
    assert "| row | a\\|b |\n| --- | --- |\n| ours | 1.5 |\n| none |  |" in shown
    assert "A note." in shown and "`lit-mmpg x`, commit cccccccccccc, " in shown
    text = "before\n<!-- results: t -->\nold\n<!-- end of results -->\nafter"
    filled = fill(text, loaded)
    assert "old" not in filled and shown in filled and filled.startswith("before") and filled.endswith("after")
    assert fill(filled, loaded) == filled
    assert shown in page(loaded)


def test_a_table_without_its_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"docs/results/gone\.json behind the results 'gone'"):
        fill("<!-- results: gone -->\n<!-- end of results -->", {})
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"bad\.json is not a file of results"):
        load(tmp_path)
    assert PART.search("<!-- results: a-b_1 -->\n<!-- end of results -->")


def test_main_results_are_won_where_the_interval_says_so() -> None:
    def verdicts(cell: str) -> list[str]:
        made = {h.name: {"columns": ["row", f"{h.column} (x)"], "rows": [[f"**{h.row}**", cell]]} for h in HEADLINES}
        shown = main_results(made, "PAGE").splitlines()[2:]
        assert all(f"](PAGE#{h.name})" in line for h, line in zip(HEADLINES, shown, strict=True))
        return [line.split("|")[-2].strip() for line in shown]

    gain, loss, nothing = (verdicts(cell) for cell in ("**+0.2 [+0.1, +0.3]**", "-0.2 [-0.3, -0.1]", "0 [-0.1, +0.1]"))
    for number, headline in enumerate(HEADLINES):
        sides = (loss, gain) if headline.lower_is_better else (gain, loss)
        assert [side[number] for side in sides] == ["**won**", "lost"] and nothing[number] == "not won"
    with pytest.raises(UserError, match=rf"{HEADLINES[0].name}\.json lacks the row"):
        main_results({})
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert main_results(load(ROOT / results.FOLDER), "docs/results/README.md") in readme
