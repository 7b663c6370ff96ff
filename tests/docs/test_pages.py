"""The documents by themselves: the site builds without a warning and fetches nothing, links lead somewhere."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from lit_mmpg import cli
from tests.docs.pages import NEEDS, PAGES, ROOT, blocks, headings

QUESTIONS = (  # what a stranger asks first
    "Where do I put my own loss?",
    "How many bytes does an adaptation cost?",
    "Why is my Orin row null?",
    "How do I add a reader?",
    "What was tried and failed?",
    "How do I bring my own model?",
    "What happens when the network is down?",
    "Is anything of my video uploaded?",
    "How do I gate a regression in my CI?",
    "How do I run two nodes?",
)


LANGUAGES = ("bash", "python", "yaml", "toml", "text", "bibtex")


class Links(html.parser.HTMLParser):
    """Ids of a page, its links, and what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found["href"]] if tag == "a" and "href" in found else []
        self.loaded += [found[name] for name in ("src", "srcset") if name in found]
        self.loaded += [found["href"]] if tag == "link" and "href" in found else []


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    build = pytest.importorskip("sphinx.cmd.build", reason="the extra 'docs' is not installed")
    pytest.importorskip("furo", reason="the extra 'docs' is not installed")
    arguments = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "made"), str(ROOT / "docs")]
    assert build.build_main([*arguments, str(tmp_path / "site")]) == 0
    site = tmp_path / "site"
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert len(pages) > 15
    for path, page in pages.items():
        assert not [link for link in page.loaded if re.match(r"(https?:)?//", link)], path
        for link in page.links:
            target, _, anchor = unquote(link).partition("#")
            if not re.match(r"\w+:", target):
                there = (path.parent / target).resolve() if target else path
                assert there.exists(), f"{path.name}: {link}"
                if anchor and there.suffix == ".html":
                    assert anchor in pages[there].ids, f"{path.name}: {link}"
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(https?:)?//", path.read_text(encoding="utf-8")), path

    commands = pages[site / "cli.html"].ids
    assert {f"lit-mmpg-{name}" for name in cli.VERBS} | {"lit-mmpg-profile-run"} <= commands
    shown = (site / "cli.html").read_text(encoding="utf-8")
    assert all(flag in shown for flag in ("--upload-codec", "--fail-on", "--save_every_n_steps", "--max-wait-ms"))
    settings = (site / "settings.html").read_text(encoding="utf-8")
    assert all(flag in settings for flag in ("--model.anchors.count", "--data.batch.context_clips"))
    reference = pages[site / "api.html"].ids
    assert {"lit_mmpg.load", "lit_mmpg.adaptable", "lit_mmpg.PersonalDevice.personalise"} <= reference


def test_each_question_of_a_stranger_has_an_answer_that_leads_on() -> None:
    text = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    answers = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for question in QUESTIONS:
        assert re.search(r"\]\([\w/]+\.md", answers[question]), question


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
            target, _, anchor = "".join(link).partition("#")
            if re.match(r"\w+:", target):
                continue
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor and "results/" not in target:  # those are anchors of their own, which test_results.py knows
                assert anchor in headings(there), f"{page.name}: {target}#{anchor}"


def test_files_that_documents_name_are_there() -> None:
    named = re.compile(r"`?\b((?:configs|examples|tests|jetson|lit_mmpg)/[\w/.-]+\.(?:yaml|py|sh|conf))\b")
    for page in PAGES:
        for name in named.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_readme_is_short_and_complete() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for part in ("<picture>", "prefers-color-scheme: dark", "make demo", "make test", "<!-- results: main -->"):
        assert part in text, part
    light, dark = ((ROOT / f"docs/images/halves-{name}.svg").read_text() for name in ("light", "dark"))
    without_colours = [re.sub(r"#[0-9a-f]{6}", "", picture) for picture in (light, dark)]
    assert light != dark and without_colours[0] == without_colours[1]


def test_every_block_of_commands_can_be_run_or_says_what_it_needs() -> None:
    """``make test-docs`` runs them; here is only looked at what they call."""
    named = 0
    extras = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page in PAGES:
        for block in blocks(page):
            where = f"{page.name}:{block.line}"
            assert block.language in LANGUAGES or "{" in block.language, where
            assert not block.needs or block.needs in NEEDS, where
            if block.language == "yaml":
                yaml.safe_load(block.text)
            for command in block.commands if block.language == "bash" else []:
                program, *rest = command.split()
                if program.endswith("lit-mmpg"):
                    named += 1
                    assert rest[0] in cli.VERBS, where
                if program == "make":
                    assert rest[0] in targets, where
                if (program, *rest[:2]) == ("pip", "install", "-e"):
                    assert set(re.findall(r"[\w-]+", rest[2])) <= set(extras), where
    assert named > 40
    indented = re.compile(r"\n\n(    |\t)(lit-mmpg|make|python|pip) ")
    assert not [page for page in PAGES if indented.search(page.read_text(encoding="utf-8"))], "fence commands as bash"


def test_the_documents_need_no_dialect() -> None:
    """Phrases that a reader outside this project cannot know."""
    coined = re.compile(r"\b(for company|in earnest|strangled|dealt to|foreign devices?)\b")
    for page in PAGES:
        if page.name != "changelog.md":
            assert not coined.search(page.read_text(encoding="utf-8")), page
