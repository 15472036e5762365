"""What a run reports: a line an epoch in `metrics.jsonl`, and the same to Comet where that works."""

import contextlib
import json
import os
import random
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.misc import tell
from utils.storage.files import atomic, naming, plain, sync

METRICS = "metrics.jsonl"

# Read by Comet from the environment, where a user's own settings win. Its own timeouts add up to minutes in which a
# run would wait at either end; what has not arrived by then is in the archive that Comet leaves.
_ENVIRONMENT = {
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
# What Comet would collect by itself: code, environment, output, command line.
_NOT_COLLECTED = (
    "log_code", "log_graph", "auto_param_logging", "auto_metric_logging", "auto_output_logging", "parse_args",
    "log_env_details", "log_git_metadata", "log_git_patch",
)  # fmt: skip


class RunLog:
    """The log of one run of `stage` in `folder`, a context manager.

    `<folder>/metrics.jsonl` gets a line `{"stage", "epoch", metric: value, ...}` for every call of `metrics`, null for
    values that are not finite. A fresh run starts the file anew; a resumed one drops the lines from its first epoch
    on, and reports those before it to Comet, where every run is an experiment of its own. No failure of Comet stops
    the run.

    Args:
        params: the run's settings, for Comet.
        comet: "online" reports to the server, if there is a key (in the environment or in Comet's own file) and the
            server accepts it; without, and with "offline", an archive `<folder>/comet/<key>.zip` is left, and the
            command that uploads it printed; "disabled" does not import Comet.
        resume_epoch: the epoch (from 1) that a resumed run begins with.
    """

    def __init__(
        self, stage: str, folder: Path, params: dict, comet: str = "online", resume_epoch: int | None = None
    ) -> None:
        self.stage, self.folder, self.params = stage, Path(folder), params
        self.mode, self.resume_epoch = comet, resume_epoch
        self._experiment = None
        self._parts = self.folder / "comet" / ".part"  # where Comet writes archives, before they are whole

    def __enter__(self) -> "RunLog":
        kept = [line for line in metric_lines(self.folder / METRICS) if line["epoch"] < (self.resume_epoch or 0)]
        with atomic(self.folder / METRICS) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        if self.mode != "disabled":
            with self._harmless():
                self._experiment = self._start_comet()
                self._experiment.log_parameters(self.params)
            for line in kept:
                self._log_metrics(line)
        return self

    def __exit__(self, *_: object) -> None:
        if self._experiment is None:
            return
        with self._harmless():
            self._experiment.end()
            for archive in self._parts.glob("*.zip"):
                sync(archive)
                kept = archive.replace(self._parts.parent / archive.name)
                sync(kept.parent)
                tell(f"Comet: to upload this run: comet upload {shlex.quote(str(kept))}")
            self._parts.rmdir()

    def metrics(self, values: dict[str, float], epoch: int) -> None:
        """Report an epoch's metrics (`epoch` from 1)."""
        line = {"stage": self.stage, "epoch": epoch, **plain(values)}
        append_json(self.folder / METRICS, line)
        self._log_metrics(line)

    @property
    def on_comet(self) -> bool:
        """Whether there is an experiment: Comet is neither disabled nor has failed."""
        return self._experiment is not None

    def comet(self, method: str, *args: object, **options: object) -> None:
        """Call a method of Comet's experiment, such as `log_image`, where there is one."""
        if self._experiment is not None:
            with self._harmless():
                getattr(self._experiment, method)(*args, **options)

    def _log_metrics(self, line: dict) -> None:
        known = {name: value for name, value in line.items() if name not in ("stage", "epoch") and value is not None}
        self.comet("log_metrics", known, step=line["epoch"], epoch=line["epoch"])

    def _start_comet(self) -> object:
        """An experiment at the server or, where that is not asked for or not to be had, one in an archive."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        hook, state = sys.excepthook, random.getstate()
        try:
            import comet_ml
        finally:  # it replaces the one and draws from the other
            sys.excepthook = hook
            random.setstate(state)
        shutil.rmtree(self._parts, ignore_errors=True)  # of a killed run
        self._parts.mkdir(parents=True)
        config = comet_ml.ExperimentConfig(
            **dict.fromkeys(_NOT_COLLECTED, False),
            display_summary_level=0,
            offline_directory=str(self._parts),
            name=f"{self.stage} {self.folder}",
            tags=[self.stage] + (["resumed"] if self.resume_epoch else []),
        )
        settings = comet_ml.get_config()
        if self.mode == "online" and settings["comet.api_key"]:
            with contextlib.suppress(Exception):  # of whatever kind: Comet raises its own, requests' and others
                experiment = comet_ml.start(mode="create", online=True, experiment_config=config)
                if experiment.alive:  # should the server be lost later, Comet leaves an archive by itself
                    tell(f"Comet: {experiment.url}")
                    return experiment
            server = comet_ml.config.get_backend_address(settings)
            tell(f"Comet: no answer from {server}, or it did not accept the key; this run is logged offline")
        return comet_ml.start(mode="create", online=False, experiment_config=config)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Comet must never stop a run: its first failure is one line, and the end of its part in the run."""
        try:
            yield
        except Exception as error:
            self._experiment = None
            text = (str(error).splitlines() or [""])[0][:120]
            tell(f"Comet failed ({type(error).__name__}: {text}); metrics go on in {self.folder / METRICS}")


def append_json(path: Path, value: dict) -> None:
    """Append `value` as a line of JSON, flushed to the disk. A full disk is an OSError that names the file."""
    with naming(path):
        with path.open("a") as file:
            file.write(json.dumps(value, allow_nan=False, default=str) + "\n")
        sync(path)


def metric_lines(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`, without one that a power loss left torn; none where there is no file."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                lines.append(line)
    return lines
