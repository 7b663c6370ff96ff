"""The site: ``make docs`` writes it to ``build/docs``. Two things are made here from the code, at build time.

A page with ``<!-- commands -->`` gets the reference of the command line, and one with ``<!-- settings -->`` that of the
classes in a configuration, both from the parsers themselves.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lit_mmpg import __version__, cli  # noqa: E402

project = "lit-mmpg"
author = copyright = "The lit-mmpg developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["results/earlier"]
myst_enable_extensions = ["attrs_block", "attrs_inline", "deflist", "fieldlist"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "lit-mmpg"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
# Furo's own stylesheets name system fonts: a page loads nothing from elsewhere.

CLASSES = {
    "model": ("DeviceModule", "CloudModule"),
    "data": ("VideoData", "PersonalClipsData", "CameraClipsData"),
}
LIGHTNING = ("fit", "validate", "test", "predict", "devices")
ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>$', re.MULTILINE)


@contextmanager
def _shown() -> Iterator[list[argparse.ArgumentParser]]:
    """Parsers that would print their help."""
    parsers: list[argparse.ArgumentParser] = []
    before = argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = lambda self, file=None: parsers.append(self)  # type: ignore[method-assign]
    try:
        yield parsers
    finally:
        argparse.ArgumentParser.print_help = before  # type: ignore[method-assign]


def parser_of(*arguments: str) -> argparse.ArgumentParser:
    """The parser that prints the help of a command."""
    with _shown() as parsers, suppress(SystemExit):
        cli.main(arguments)
    return parsers[-1]


def _escape(text: str) -> str:
    """Help as Markdown: what a docstring marks as code stays that."""
    text = " ".join("".join(c for c in text if c.isprintable() or c == "\n").split())
    parts = re.split(r"(?::\w+:`~?([^`]+)`|``(.+?)``)", text)
    words, codes = parts[::3], (role or code for role, code in zip(parts[1::3], parts[2::3], strict=True))
    escaped = [re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", part) for part in words]
    return escaped[0] + "".join(f"`{code}`{rest}" for code, rest in zip(codes, escaped[1:], strict=True))


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """One option as an entry of a definition list."""
    formatter = parser._get_formatter()
    names = ", ".join(f"`{name}`" for name in action.option_strings if not name.endswith("+"))
    metavar = "" if action.nargs == 0 else formatter._format_args(action, _default_metavar(action))
    if action.option_strings and metavar and len(metavar) < 60:
        names = names[:-1] + f" {''.join(filter(str.isprintable, metavar))}`"
    text = formatter._expand_help(action) if action.help else ""
    needed = " *(required)*" if action.required and action.option_strings else ""
    return [f"{names or f'`{metavar}`'}{needed}", f": {_escape(text) or 'see the configuration'}", ""]


def _default_metavar(action: argparse.Action) -> str:
    if action.option_strings:
        return str(action.dest).rpartition(".")[2].upper()
    return str(action.metavar or action.dest)


def _options(parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> list[str]:
    lines: list[str] = []
    for action in parser._actions:
        hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction)
        flag = (action.option_strings or [""])[-1]
        shows_help = flag.endswith((".help", "--help"))
        if not hidden and not shows_help and not flag.startswith(leave_out or ("\0",)):
            lines += _option(parser, action)
    return lines


def _described(parser: argparse.ArgumentParser, level: int) -> list[str]:
    """Text, subcommands and options of a parser of the standard library."""
    lines = [_escape(parser.description or ""), ""]
    lines += _options(parser)
    if parser.epilog:
        lines += (
            ["```text", parser.epilog.strip(), "```", ""] if "\n" in parser.epilog else [_escape(parser.epilog), ""]
        )
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help for choice in action._choices_actions}
            for name, sub in action.choices.items():
                heading = f"{'#' * level} {sub.prog}"
                lines += [heading, "", "" if sub.description else _escape(said.get(name) or ""), ""]
                lines += _described(sub, level + 1)
    return lines


def commands() -> str:
    """Every command with its options."""
    lines: list[str] = []
    for name, entry in cli.VERBS.items():
        lines += [f"## lit-mmpg {name}", "", f"{entry.help[0].upper()}{entry.help[1:]}.", ""]
        parser = parser_of(name, "--help")
        if name in LIGHTNING:
            lines += _options(parser, ("--trainer.", "--model.", "--data."))
            trainer = [a.option_strings[-1] for a in parser._actions if a.option_strings]
            own = ", ".join(f"`{flag.rstrip('+')}`" for flag in trainer if re.fullmatch(r"--trainer\.[a-z_]+", flag))
            lines += [
                f"Lightning's Trainer: {own}. Those of the classes that train and bring data: "
                "[settings of a configuration](settings.md).",
                "",
            ]
        else:
            lines += _described(parser, 3)
    return "\n".join(lines)


def settings() -> str:
    """The settings of the classes that a configuration names."""
    lines: list[str] = []
    for part, names in CLASSES.items():
        for name in names:
            parser = parser_of("fit", f"--{part}.help={name}")
            lines += [f"## {part}: {name}", "", *_options(parser), ""]
    return "\n".join(lines)


def _make(app: Any, page: str, source: list[str]) -> None:
    text = ANCHOR.sub(r"(\1)=", source[0])
    if page == "index":  # pages that nobody has placed are listed last
        listed = re.findall(r"^(\w+)$", text, re.MULTILINE)
        others = sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem not in ("index", *listed))
        text = text.replace("<!-- other pages -->", "\n".join(others))
    for mark, made in (("<!-- commands -->", commands), ("<!-- settings -->", settings)):
        if f"\n{mark}\n" in text:
            text = text.replace(mark, made())
    source[0] = text


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _make)
