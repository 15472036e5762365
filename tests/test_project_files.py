"""Set-up, container and licence files: what can be held without a network and without Docker."""

import fnmatch
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci/run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_name_their_shell_and_parse(script):
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", script], check=True)


def test_the_demo_keeps_one_precision_from_training_to_prediction(tmp_path):
    """With a Python that only writes down what it is called with, on a processor with bf16 instructions."""
    log, folder = tmp_path / "log", tmp_path / "checkpoint" / "synthetic" / "demo"
    for name, line in {"venv/bin/python": f'echo "$*" >>{log}', "bin/grep": "exit 0"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    (tmp_path / "venv" / ".requirements.txt").write_bytes((ROOT / "requirements.txt").read_bytes())
    folder.mkdir(parents=True)  # for its times
    env = os.environ | {"VENV": str(tmp_path / "venv"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env |= {"CHECKPOINT_ROOT": str(tmp_path / "checkpoint"), "DATA_ROOT": str(tmp_path / "data")}
    done = subprocess.run(["bash", ROOT / "scripts" / "demo.sh"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    _, *chain = re.findall(r"^\w+\.py .*", log.read_text(), re.MULTILINE)  # first a video, with the shipped weights
    assert len(chain) == 8 and all("--amp bf16" in call for call in chain), chain


# --- set-up ---


def wheel(folder: Path, name: str) -> Path:
    """A package that needs nothing from anywhere."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "answer = 42\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with the set-up script, requirements of two packages beside it, and blanks in its path."""
    folder = tmp_path / "a clone"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts/setup.sh").write_bytes((ROOT / "scripts/setup.sh").read_bytes())
    packages = [wheel(tmp_path, name).as_uri() for name in ("first_of_two", "second_of_two")]
    (folder / "requirements.txt").write_text("\n".join(packages) + "\n")
    return folder


def start(clone: Path, **variables: str) -> subprocess.Popen:
    """The set-up, started from another folder with little environment."""
    env = {"PATH": os.environ["PATH"], "HOME": str(clone.parent), "PYTHON": sys.executable, **variables}
    command = ["bash", str(clone / "scripts/setup.sh")]
    return subprocess.Popen(command, cwd=clone.parent, env=env, stdout=-1, stderr=-1, text=True)


def set_up(clone: Path, **variables: str) -> tuple[int, str]:
    """(exit status, what the set-up printed)."""
    process = start(clone, **variables)
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def has_both(env: Path) -> bool:
    return not subprocess.run([env / "bin/python", "-c", "import first_of_two, second_of_two"], check=False).returncode


@pytest.mark.slow
def test_set_up_makes_an_environment_finishes_one_and_then_leaves_it_alone(clone, tmp_path):
    pytest.importorskip("ensurepip", reason="this Python brings no pip, and fetching one needs a network")
    hidden = (tmp_path / "second_of_two-1.0-py3-none-any.whl").rename(tmp_path / "hidden")
    status, text = set_up(clone)
    assert status == 2 and "setup: pip did not finish" in text
    env = clone / ".venv"
    assert env.is_dir() and not has_both(env)

    hidden.rename(tmp_path / "second_of_two-1.0-py3-none-any.whl")
    both = [start(clone), start(clone)]
    outputs = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0] and has_both(env), outputs
    assert sorted(p.name for p in clone.iterdir()) == [".venv", "requirements.txt", "scripts"]

    assert set_up(clone) == (0, "")
    third = wheel(tmp_path, "third").as_uri()
    with (clone / "requirements.txt").open("a") as file:
        file.write(third + "\n")
    status, text = set_up(clone, VENV="a clone/.venv")  # relative to where it was called
    assert status == 0 and text.endswith("setup: done\n")
    subprocess.run([env / "bin/python", "-c", "import third"], check=True)


def test_set_up_tells_an_old_python_and_a_missing_one(clone, tmp_path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18 && exit\nexit 1\n')
    old.chmod(0o755)
    status, text = set_up(clone, PYTHON=str(old))
    assert status == 2 and "is Python 3.9.18, but 3.10 or newer is needed" in text and text.count("\n") == 1
    status, text = set_up(clone, PYTHON="no-such-python")
    assert status == 2 and text == "setup: no no-such-python here; install Python 3.10 or newer\n"
    assert not (clone / ".venv").exists()


def test_set_up_spares_a_folder_that_is_no_environment(clone, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/thesis.txt").write_text("years of work")
    status, text = set_up(clone, VENV=str(tmp_path / "papers"))
    assert status == 2 and "papers holds files, but no Python environment" in text
    assert (tmp_path / "papers/thesis.txt").read_text() == "years of work"


# --- container ---


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments)."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def kept_out(path: str) -> bool:
    """Whether .dockerignore keeps a path, or a folder above it, out of the image."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(
        fnmatch.fnmatch(p, pattern) or (pattern.startswith("**/") and fnmatch.fnmatch(p, pattern[3:]))
        for p in above
        for pattern in patterns
    )


def test_dockerfile_has_a_pinned_base_and_shell_lines_that_parse():
    ((_, image),) = [i for i in instructions() if i[0] == "FROM"]
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.04", image)
    for _, command in (i for i in instructions() if i[0] == "RUN"):
        subprocess.run(["sh", "-n", "-c", command], check=True)


def test_dockerfile_copies_what_is_there_and_the_code_after_the_packages():
    copies = [i for i in instructions() if i[0] == "COPY"]
    sources = [a.split()[:-1] for _, a in copies]
    for source in (s for some in sources for s in some if not s.startswith("--")):
        assert (ROOT / source).exists() and not kept_out(source)
    order = [i for i, (name, text) in enumerate(instructions()) if "setup.sh" in text or text.endswith(". .")]
    assert [instructions()[i][0] for i in order] == ["COPY", "RUN", "COPY"]
    assert "requirements.txt ./" in [a for _, a in copies]


def test_container_runs_as_a_user_of_its_own_on_two_volumes():
    lines = instructions()
    names = [name for name, _ in lines]
    assert lines[names.index("USER")][1] not in ("root", "0") and names.count("USER") == 1
    assert ("ARG", "UID=1000") in lines and ("VOLUME", '["/data", "/checkpoint"]') in lines
    assert any("ln -s /data /checkpoint /workspace" in text for _, text in lines) and ("WORKDIR", "/workspace") in lines


def test_what_git_ignores_stays_out_of_the_image_and_the_code_does_not():
    for line in (ROOT / ".gitignore").read_text().split():
        assert kept_out(line.strip("/").replace("*", "a")), line
    assert all(kept_out(path) for path in (".git/HEAD", "models/__pycache__/a.pyc", "data/jhmdb21/a.pkl"))
    code = ["datasets/check.py", "models/detr.py", "tests/fixtures/tracking.json", "docs/protocol.md", "Dockerfile"]
    assert not any(map(kept_out, code))


# --- licence ---


def test_licence_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert all(f"\n   {n}. " in text for n in range(1, 10)) and "END OF TERMS AND CONDITIONS" in text
    assert "[yyyy]" not in text and "The query-matching action detection authors" in text


def test_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]] == ["Omi", "Oshima", "Tamaki"]
    assert paper["year"] == 2025 and paper["url"].endswith("2503.12969")
