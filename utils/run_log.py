"""What a run reports: a line an epoch in `metrics.jsonl`, and the same to Comet where that works."""

import contextlib
import importlib
import json
import math
import os
import random
import shlex
import shutil
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from utils.storage.files import atomic, sync

METRICS = "metrics.jsonl"
REACH_SECONDS = 3.0  # how long a server may take to answer before the run goes on without it

# Comet reads these from the environment; a user's own settings stand. Its own timeouts add up to minutes in
# which a run would wait at either end; what has not arrived by then is in the archive that Comet leaves.
_SETTINGS = {
    "COMET_DISABLE_AUTO_LOGGING": "1",  # no patching of torch and others
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_ERROR_TRACKING_ENABLE": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "1",
    "COMET_HTTP_SESSION_RETRY_TOTAL": "0",
    "COMET_TIMEOUT_HTTP": "3",
    "COMET_TIMEOUT_CLEANING": "10",
    "COMET_TIMEOUT_UPLOAD": "30",
}
# Nothing is collected behind the run's back: no code, no environment, no output, no command line.
_OPTIONS = {
    "log_code": False,
    "log_graph": False,
    "auto_param_logging": False,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "parse_args": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "display_summary_level": 0,
}


class RunLog:
    """The log of one run of `stage` in `folder`, a context manager.

    Whatever Comet does, `<folder>/metrics.jsonl` gets a line `{"stage", "epoch", figure: value, ...}` for
    every call of `metrics`; figures that are not finite are null. A fresh run starts the file anew. With
    `resume_epoch`, the epoch that runs next, lines from that epoch on are dropped first, and Comet, where
    every run is an experiment of its own, is told the lines before it again.

    `comet`: "online" reports to the server when there is a key (the environment or Comet's own file) and
    the server answers within a few seconds; without, and with "offline", an archive
    `<folder>/comet/<key>.zip` is left, and the command that uploads it is printed; "disabled" never imports
    Comet. No failure of Comet stops the run. `project` names the Comet project where the user's settings
    name none. With `active` False (all ranks but one) every call does nothing.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        params: dict,
        comet: str = "online",
        resume_epoch: int | None = None,
        active: bool = True,
        project: str | None = None,
    ) -> None:
        self.stage, self.folder, self.params = stage, Path(folder), params
        self.mode, self.project, self.active = comet, project, active
        self.resume_epoch = resume_epoch
        self._experiment = None
        self._parts = self.folder / "comet" / ".part"  # where Comet writes archives, before they are whole

    def __enter__(self) -> "RunLog":
        if not self.active:
            return self
        kept = _lines_before(self.folder / METRICS, self.resume_epoch)
        with atomic(self.folder / METRICS) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        if self.mode != "disabled":
            with self._harmless():
                self._open_comet()
            for line in kept:
                self._report({k: v for k, v in line.items() if k not in ("stage", "epoch")}, line["epoch"])
        return self

    def __exit__(self, *_: object) -> None:
        if self._experiment is None:
            return
        with self._harmless():
            self._experiment.end()
            self._keep_archive()
        self._experiment = None

    def metrics(self, values: dict[str, float], epoch: int) -> None:
        """Report the figures of an epoch (from 1)."""
        if not self.active:
            return
        figures = {name: _finite(value) for name, value in values.items()}
        append_json(self.folder / METRICS, {"stage": self.stage, "epoch": epoch, **figures})
        self._report(figures, epoch)

    def checkpoint(self, path: str | Path) -> None:
        """Report the newest checkpoint's name; the file itself stays here."""
        if self._experiment is not None:
            with self._harmless():
                self._experiment.log_other("checkpoint", str(path))

    def figure(self, name: str, path: str | Path) -> None:
        """Report a picture, a PNG file, under `name`."""
        if self._experiment is not None:
            with self._harmless():
                self._experiment.log_image(str(path), name=name, overwrite=True)

    def _report(self, figures: dict[str, float | None], epoch: int) -> None:
        if self._experiment is not None:
            with self._harmless():
                known = {name: value for name, value in figures.items() if value is not None}
                self._experiment.log_metrics(known, step=epoch, epoch=epoch)

    def _open_comet(self) -> None:
        comet_ml = _import_comet()
        config = comet_ml.get_config()
        shutil.rmtree(self._parts, ignore_errors=True)  # of a killed run
        self._parts.mkdir(parents=True)
        options = {"project_name": config["comet.project_name"] or self.project, "offline_directory": str(self._parts)}
        key = comet_ml.config.get_api_key(None, config) if self.mode == "online" else None
        if key is not None:
            server = comet_ml.config.get_backend_address(config)
            if not _answers(server):
                _say(f"Comet: no answer from {server}; this run is logged offline")
            elif not self._open_online(comet_ml, options):
                _say(f"Comet: {server} did not accept this run (is the key right?); it is logged offline")
        if self._experiment is None:
            self._experiment = comet_ml.OfflineExperiment(**options, **_OPTIONS)
        self._experiment.set_name(f"{self.stage} {self.folder}")
        self._experiment.add_tags([self.stage] + (["resumed"] if self.resume_epoch else []))
        self._experiment.log_parameters(self.params)

    def _open_online(self, comet_ml: ModuleType, options: dict) -> bool:
        """Whether the server has taken the run. Should it go later, Comet leaves an archive by itself."""
        try:
            experiment = comet_ml.Experiment(**options, **_OPTIONS)
        except Exception:  # of whatever kind: Comet raises its own, requests' and others
            return False
        if not experiment.alive:
            return False
        self._experiment = experiment
        _say(f"Comet: {experiment.url}")
        return True

    def _keep_archive(self) -> None:
        """Move what Comet has left to where it stays, whole."""
        for archive in self._parts.glob("*.zip"):
            sync(archive)
            kept = archive.replace(self._parts.parent / archive.name)
            sync(kept.parent)
            _say(f"Comet: to upload this run: comet upload {shlex.quote(str(kept))}")
        self._parts.rmdir()

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Comet must never stop a run: its first failure is one line, and the end of its part in the run."""
        try:
            yield
        except Exception as error:
            self._experiment = None
            text = (str(error).splitlines() or [""])[0][:120]
            _say(f"Comet failed ({type(error).__name__}: {text}); figures go on in {self.folder / METRICS}")


def append_json(path: Path, value: dict) -> None:
    """Append `value` as a line of JSON, flushed to the disk. A full disk is an OSError that names the file."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(value, allow_nan=False, default=str) + "\n")
        sync(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _finite(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)


def _lines_before(path: Path, epoch: int | None) -> list[dict]:
    """The file's lines of epochs before `epoch`, without one that a kill or a power loss left torn."""
    if epoch is None or not path.is_file():
        return []
    held = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("epoch"), int) and line["epoch"] < epoch:
                held.append(line)
    return held


def _import_comet() -> ModuleType:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    hook, drawn = sys.excepthook, random.getstate()
    try:
        return importlib.import_module("comet_ml")
    finally:  # it replaces the one and draws from the other
        sys.excepthook = hook
        random.setstate(drawn)


def _answers(server: str) -> bool:
    """Whether anything answers at the address within `REACH_SECONDS`, proxies of the environment included.

    Comet itself would go on trying for minutes. The look-up of the name has no time limit of its own, so
    all of it happens in a thread that is left behind when it takes too long.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(server, timeout=REACH_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # any status is an answer
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # a certificate of one's own: Comet decides
                return
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS + 1)
    return answered.is_set()
