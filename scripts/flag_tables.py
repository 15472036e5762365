"""The tables of flags in the READMEs, from the scripts' own parsers.

    python -m scripts.flag_tables

writes the tables between `<!-- flags: ... -->` and `<!-- end -->` of README.md anew. In README.ja.md flags and
their order are renewed, and what is translated there stays; a new flag is in English until somebody translates it.
"""

import importlib
import re
from argparse import Action
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from utils.cli import Parser, run
from utils.storage.files import atomic

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train_detr", "train_qmm", "eval_qmm", "train_action_head", "eval_map", "predict")
GROUPS: dict[str, tuple[str, ...]] = {
    "every script": SCRIPTS,
    "every stage": SCRIPTS[:5],
    "every trainer": ("train_detr", "train_qmm", "train_action_head"),
    "linked people": ("eval_qmm", "train_action_head", "eval_map"),
    **{f"{script}.py": (script,) for script in SCRIPTS},
}
"""Tables by name: the flags that all of these scripts have alike, in the first table that they fit in."""
BLOCK = re.compile(r"(<!-- flags: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


class Row(NamedTuple):
    """A flag as the help shows it; `default` in backquotes is what is typed, else it says where it comes from."""

    flag: str
    default: str
    what: str


class _Built(Exception):
    """Carries a parser out of the script that has built it."""


def parser_of(script: str) -> Parser:
    """The command line of a script, which is stopped before it does anything."""

    def stop(parser: Parser) -> None:
        raise _Built(parser)

    with patch.object(Parser, "parse_args", stop):
        try:
            importlib.import_module(script).main()
        except _Built as built:
            return built.args[0]
    raise RuntimeError(f"{script}: parses no command line")


def row_of(action: Action, parser: Parser) -> Row:
    """One flag of a parser."""
    formatter = parser._get_formatter()
    flag = formatter._format_action_invocation(action) if action.option_strings else action.dest
    what, _, told = (action.help or "").partition(" (default: ")
    given = action.default
    if action.required:
        default = "required"
    elif told:
        default = told.removesuffix(")")
        default = f"`{default}`" if re.fullmatch(r"[\w.]*\d[\w.]*|frozen|<.*", default) else default
    elif given is None or given is False:
        default = "-"
    elif given is True:
        default = "on"
    else:
        default = f"`{' '.join(map(str, given)) if isinstance(given, list) else given}`"
    return Row(f"`{flag}`", default, what.replace("<", "&lt;"))


def tables() -> dict[str, list[Row]]:
    """The rows of every table."""
    rows: dict[str, list[Row]] = {}
    for script in SCRIPTS:
        parser = parser_of(script)
        rows[script] = [row_of(action, parser) for action in parser._actions if action.dest != "help"]
    shown: dict[str, set[Row]] = {script: set() for script in SCRIPTS}
    held = {}
    for name, scripts in GROUPS.items():
        held[name] = [row for row in rows[scripts[0]] if all(row in rows[s] and row not in shown[s] for s in scripts)]
        for script in scripts:
            shown[script] |= set(held[name])
    return held


def cells(block: str) -> dict[str, list[str]]:
    """The cells of a table's rows by their flag."""
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()[2:] if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row] for row in split}


def fill(text: str, held: dict[str, list[Row]], keep: bool) -> str:
    """`text` with its tables renewed; with `keep` what stands there for a flag stays, but for what is typed."""

    def table(match: re.Match) -> str:
        begin, name, old, end = match.groups()
        head = old.splitlines()[:2] if keep and old.strip() else ["| flag | default | what |", "| --- | --- | --- |"]
        known = cells(old) if keep else {}
        lines = []
        for row in held[name]:
            flag, default, what = (cell.replace("|", "\\|") for cell in row)
            if there := known.get(flag):
                default, what = default if "`" in default else there[1], there[2]
            lines.append(f"| {flag} | {default} | {what} |")
        return begin + "\n".join([*head, *lines]) + "\n" + end

    return BLOCK.sub(table, text)


def main() -> None:
    """Renew both READMEs."""
    Parser("Write the tables of flags in README.md and README.ja.md anew.").parse_args()
    held = tables()
    for name, keep in (("README.md", False), ("README.ja.md", True)):
        path = ROOT / name
        with atomic(path) as part:
            part.write_text(fill(path.read_text(encoding="utf-8"), held, keep), encoding="utf-8")


if __name__ == "__main__":
    run(main)
