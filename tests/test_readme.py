"""READMEs and documents: links exist, commands parse, flags exist, both languages agree."""

import re
import shlex
from pathlib import Path

import cv2
import pytest

from scripts.flag_tables import SCRIPTS, page, parser_of, tables
from utils.cli import Parser

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.ja.md")
DOCUMENTS = (
    *READMES,
    *(f"docs/{name}.md" for name in ("design", "own_data", "protocol", "reliability", "performance")),
)
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
def test_every_relative_link_exists(name: str) -> None:
    for link in LINK.findall(CODE.sub("", read(name))):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_images_are_small_and_all_are_shown() -> None:
    images = list((ROOT / "docs" / "images").iterdir())
    assert {path.name for path in images} == {
        Path(link).name for link in LINK.findall(read("README.md")) if "images/" in link
    }
    for path in images:
        assert path.stat().st_size < 1_000_000
        ok, frame = cv2.VideoCapture(str(path)).read()
        assert ok and frame.std() > 1


def test_the_readme_is_short() -> None:
    main, appendix = read("README.md").split("\n## Appendix\n")
    assert len(main.encode()) <= 10 * 1024 and appendix


def test_the_page_of_flags_is_that_of_the_parsers() -> None:
    assert read("docs/flags.md") == page(), "run python -m scripts.flag_tables"


def test_every_flag_is_in_one_table_of_its_script() -> None:
    for script in SCRIPTS:
        name = f"`{script}.py`"
        shared = [heading for heading in tables() if heading == name or not heading.endswith(".py`")]
        assert name in shared
        flags = {row.flag for row in tables()[name]}
        everywhere = [row.flag for heading, rows in tables().items() for row in rows if heading != name]
        assert all(f"`{parser_of(script)._get_formatter()._format_action_invocation(a)}`" in flags | set(everywhere)
                   for a in parser_of(script)._actions if a.option_strings and a.dest != "help")  # fmt: skip


def test_both_languages_agree() -> None:
    one, other = map(read, READMES)
    levels = [re.findall(r"^(#+) ", CODE.sub("", text), re.MULTILINE) for text in (one, other)]
    assert levels[0] == levels[1]
    assert commands(one) == commands(other)
    links = [{link.partition("#")[0] for link in LINK.findall(text)} - {*READMES, ""} for text in (one, other)]
    assert links[0] == links[1]
    rows = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (one, other)]
    assert rows[0] == rows[1]
    results = [dict(re.findall(r"<!-- (\w+: \w+) --> (.+?) \|", text)) for text in (one, other)]
    assert results[0].keys() == results[1].keys() and results[0]
    for place, text in results[0].items():
        assert sorted(re.findall(r"\d+(?:\.\d+)?", text)) == sorted(re.findall(r"\d+(?:\.\d+)?", results[1][place]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_parses(name: str) -> None:
    parsers = {f"{script}.py": parser_of(script) for script in SCRIPTS}
    for words in commands(read(name)):
        assert words[0] in {"docker", "mkdir", "cd", "git", "bash", "python", "torchrun"}, words
        script = next((word for word in words if word in parsers), None)
        if script is not None:
            Parser.parse_args(parsers[script], words[words.index(script) + 1 :])
        elif words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            source = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module
            assert source.exists(), words
            text = source.read_text() if source.is_file() else "".join(p.read_text() for p in source.glob("*.py"))
            flags = {word.lstrip("-") for word in words[3:] if word.startswith("--")}
            assert all(f'"{flag}"' in text or f'"--{flag}"' in text for flag in flags), words
        elif words[0] == "bash":
            assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_flag_in_running_text_exists(name: str) -> None:
    known = {option for script in SCRIPTS for action in parser_of(script)._actions for option in action.option_strings}
    sources = [*(ROOT / "datasets").rglob("*.py"), *(ROOT / "models").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    long_runs = (ROOT / "tests" / f"{name}.py" for name in ("fuzz", "kill_many", "soak"))
    sources += [*(ROOT / "scripts").glob("*.py"), *long_runs]
    known |= {f"--{flag}" for path in sources for flag in re.findall(r'"-{0,2}(\w+)"', path.read_text())}
    known |= set(re.findall(r"--\w+", "".join(p.read_text() for p in (ROOT / "scripts").glob("*.sh"))))
    known |= {"--nproc_per_node", "--help", "--ipc", "--volume", "--shm-size", "--gpus", "--api-key"}
    spans = re.findall(r"`([^`\n]+)`", CODE.sub("", read(name)))
    named = {flag for span in spans for flag in re.findall(r"(?:^|\s)(--[\w-]+)", span)}
    assert named - known == set()


def test_the_published_settings_are_what_plain_commands_use() -> None:
    table = read("docs/protocol.md").partition("## Flags of the published settings")[2]
    script, compared = "", 0
    for line in table.splitlines():
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(row) != 5 or row[0] in ("stage", "---"):
            continue
        script = row[0].strip("`").removesuffix(".py") if row[0] else script
        flags = shlex.split(row[4].partition("`")[2].partition("`")[0])
        if script not in SCRIPTS or "default" in row[4] or len(flags) < 2:
            continue
        parser = parser_of(script)
        plain, asked = (vars(Parser.parse_args(parser, ["--dataset", "d", *more])) for more in ([], flags))
        for name, value in asked.items():
            if plain[name] is not None:
                pair = [[float(v) for v in x] if isinstance(x, list) else x for x in (plain[name], value)]
                assert pair[0] == pair[1], (script, name)
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "d", "--plto"], "--plto; did you mean --plot?"),
        (["--sim_th", "3"], "--sim_th: 3 is not between -1 and 1"),
        ([], "--dataset"),
    ],
)
def test_a_mistyped_flag_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        Parser.parse_args(parser_of("eval_map"), flags)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and message in line and line.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_each_flag_once(script: str) -> None:
    names = re.findall(r"^  (-\S+)", parser_of(script).format_help(), re.MULTILINE)
    assert len(names) == len(set(names)) == len([a for a in parser_of(script)._actions if a.option_strings])
