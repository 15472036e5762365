"""READMEs and documents: links lead somewhere, commands are understood, tables are true, both languages agree."""

import re
import shlex
from pathlib import Path

import cv2
import pytest

from scripts.flag_tables import BLOCK, GROUPS, SCRIPTS, cells, fill, parser_of, tables
from utils.cli import Parser

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.ja.md")
DOCUMENTS = (*READMES, "docs/design.md", "docs/own_data.md", "docs/protocol.md")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """Headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """The words of every line of the bash blocks."""
    blocks = [body.replace("\\\n", " ") for kind, body in CODE.findall(text) if kind == "bash"]
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_and_picture_exists(name: str) -> None:
    links = [link for link in LINK.findall(CODE.sub("", read(name))) if not link.startswith("http")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
    assert len(links) >= (8 if name in READMES else 0)


def test_pictures_are_small_and_all_are_shown() -> None:
    held = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert held == {Path(link).name for link in LINK.findall(read("README.md")) if "images/" in link}
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.stat().st_size < 1_000_000
        ok, frame = cv2.VideoCapture(str(path)).read()
        assert ok and frame.std() > 1


@pytest.mark.parametrize("name", READMES)
def test_flag_tables_are_those_of_the_parsers(name: str) -> None:
    text, held = read(name), tables()
    assert [table for _, table, _, _ in BLOCK.findall(text)] == list(GROUPS)
    assert fill(text, held, keep=name != "README.md") == text, "run python -m scripts.flag_tables"


def test_every_flag_of_a_script_is_in_one_of_its_tables() -> None:
    held = tables()
    for script in SCRIPTS:
        shown = [row.flag for name, scripts in GROUPS.items() if script in scripts for row in held[name]]
        assert len(shown) == len(set(shown)) == len(parser_of(script)._actions) - 1


def test_the_other_language_says_the_same() -> None:
    one, other = map(read, READMES)
    levels = [re.findall(r"^(#+) ", CODE.sub("", text), re.MULTILINE) for text in (one, other)]
    assert levels[0] == levels[1]
    assert commands(one) == commands(other)
    links = [[link.partition("#")[0] for link in LINK.findall(text)] for text in (one, other)]
    own = set(READMES)
    assert sorted(set(links[0]) - own - {""}) == sorted(set(links[1]) - own - {""})
    rows = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (one, other)]
    assert rows[0] == rows[1]
    plain = [{**cells(block)} for text in (one, other) for _, _, block, _ in BLOCK.findall(text)]
    half = len(plain) // 2
    for a, b in zip(plain[:half], plain[half:], strict=True):
        assert a.keys() == b.keys()
        untranslated = [flag for flag in a if re.search("[a-z]{3} [a-z]{3}", b[flag][2]) and a[flag][2] == b[flag][2]]
        assert not untranslated


def test_figures_of_what_was_measured_are_in_both_languages() -> None:
    place = re.compile(r"<!-- (\w+: \w+) --> (.+?) \|")
    one, other = (dict(place.findall(read(name))) for name in READMES)
    assert one.keys() == other.keys() and len(one) == 6
    for where in one:
        assert re.findall(r"\d+(?:\.\d+)?", one[where]) == re.findall(r"\d+(?:\.\d+)?", other[where]), where


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers = {f"{script}.py": parser_of(script) for script in SCRIPTS}
    known = {"docker", "mkdir", "cd", "git", "bash", "python", "torchrun"}
    for words in commands(read(name)):
        assert words[0] in known, words
        script = next((word for word in words if word in parsers), None)
        if script is not None:
            Parser.parse_args(parsers[script], words[words.index(script) + 1 :])
        elif words[:2] == ["python", "-m"]:
            module = ROOT / f"{words[2].replace('.', '/')}.py"
            assert module.is_file(), words
            flags = {word.lstrip("-") for word in words[3:] if word.startswith("-")}
            assert all(f'"{flag}"' in module.read_text() for flag in flags), words
        elif words[0] == "bash":
            assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_flag_that_is_named_exists(name: str) -> None:
    """Flags in running text and tables, of any script, module or tool that the text is about."""
    held = {option for script in SCRIPTS for action in parser_of(script)._actions for option in action.option_strings}
    modules = "".join(path.read_text() for path in (ROOT / "datasets").glob("*.py"))
    held |= {f"--{flag}" for flag in re.findall(r'flag\("\w+", "(\w+)"', modules)}
    others = {"--nproc_per_node", "--help", "--ipc", "--volume", "--shm-size", "--gpus", "--api-key"}
    spans = re.findall(r"`([^`\n]+)`", CODE.sub("", read(name)))
    named = {flag for span in spans for flag in re.findall(r"(?:^|\s)(--[\w-]+)", span)}
    assert named - held - others == set()


def test_the_table_of_published_settings_is_what_plain_commands_do() -> None:
    table = read("docs/protocol.md").partition("## Flags of the published settings")[2]
    script, compared = "", 0
    for line in table.splitlines():
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(row) != 5 or row[0] in ("stage", "---"):
            continue
        script = row[0].strip("`").removesuffix(".py") if row[0] else script
        given = shlex.split(row[4].partition("`")[2].partition("`")[0])
        if script not in SCRIPTS or "default" in row[4] or len(given) < 2:
            continue
        parser = parser_of(script)
        plain, asked = (vars(Parser.parse_args(parser, ["--dataset", "d", *more])) for more in ([], given))
        for name, value in asked.items():
            if plain[name] is not None:
                known = [[float(v) for v in each] if isinstance(each, list) else each for each in (plain[name], value)]
                assert known[0] == known[1], (script, name)
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--dataset", "d", "--plto"], "unrecognized arguments: --plto; did you mean --plot? (see --help)"),
        (["--sim_th", "3"], "argument --sim_th: 3 is not between -1 and 1 (see --help)"),
        ([], "the following arguments are required: --dataset (see --help)"),
    ],
)
def test_a_mistyped_flag_is_one_line(given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of("eval_map")
    with pytest.raises(SystemExit) as stop:
        Parser.parse_args(parser, given)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"{parser.prog}: error: {told}\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_each_flag_once_with_its_default(script: str) -> None:
    text = parser_of(script).format_help()
    assert text.splitlines()[0].endswith("[flags]") and "-epochs 20" in text.splitlines()[-1]
    names = re.findall(r"^  (-\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names)) == len([a for a in parser_of(script)._actions if a.option_strings])
    assert "0: all cores (default: 0)" in " ".join(text.split())
