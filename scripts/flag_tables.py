"""Write docs/flags.md, the tables of all flags, from the scripts' own parsers.

python -m scripts.flag_tables
"""

import importlib
import re
from argparse import SUPPRESS, Action
from pathlib import Path
from typing import NamedTuple

from utils.cli import Parser, run
from utils.storage.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "flags.md"
SCRIPTS = ("train_detr", "train_qmm", "eval_qmm", "train_action_head", "eval_map", "predict")
TABLES: dict[str, tuple[str, ...]] = {
    "All scripts": SCRIPTS,
    "All but `predict.py`": SCRIPTS[:5],
    "Trainers": ("train_detr", "train_qmm", "train_action_head"),
    "Tracks: `eval_qmm.py`, `train_action_head.py`, `eval_map.py`": ("eval_qmm", "train_action_head", "eval_map"),
    **{f"`{script}.py`": (script,) for script in SCRIPTS},
}
"""Tables by heading: the flags that these scripts share, each in the first table that it fits in."""
HEAD = """# Flags

`python <script> --help` shows these too. One dash works as well (`-epochs 20`). Invalid input prints one
line and exits with status 2. This page is written by `python -m scripts.flag_tables`.
"""


class Row(NamedTuple):
    """A flag as the help shows it; a default in backquotes is a value, else it says where the value comes from."""

    flag: str
    default: str
    meaning: str


def parser_of(script: str) -> Parser:
    """Return a script's parser."""
    return importlib.import_module(script).make_parser()


def row_of(action: Action, parser: Parser) -> Row:
    """Return the row of one flag."""
    formatter = parser._get_formatter()
    flag = formatter._format_action_invocation(action) if action.option_strings else action.dest
    meaning, _, source = (action.help or "").partition(" (default: ")
    value = action.default
    if action.required:
        default = "required"
    elif source:
        default = source.removesuffix(")")
    elif value is None or value is False or value in ((), SUPPRESS):
        default = "-"
    elif value is True:
        default = "on"
    else:
        default = f"`{' '.join(map(str, value)) if isinstance(value, list) else value}`"
    return Row(f"`{flag}`", default, meaning.replace("%%", "%"))


def tables() -> dict[str, list[Row]]:
    """Return the rows of every table by its heading."""
    rows = {}
    for script in SCRIPTS:
        parser = parser_of(script)
        rows[script] = [row_of(action, parser) for action in parser._actions if action.dest != "help"]
    placed: dict[str, set[Row]] = {script: set() for script in SCRIPTS}
    result = {}
    for heading, scripts in TABLES.items():
        shared = [row for row in rows[scripts[0]] if all(row in rows[s] and row not in placed[s] for s in scripts)]
        for script in scripts:
            placed[script].update(shared)
        result[heading] = shared
    return result


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for heading, rows in tables().items():
        lines = [f"## {heading}\n", "| flag | default | meaning |", "| --- | --- | --- |"]
        for row in rows:
            cells = (re.sub(r"<(?=\w)", "&lt;", cell.replace("|", "\\|")) for cell in row)
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    Parser("Write docs/flags.md from the scripts' parsers.").parse_args()
    write_text(PAGE, page())


if __name__ == "__main__":
    run(main)
