"""Project files: one YAML file a data set, with its labels, paths and default thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from utils.misc import InputError

BUILT_IN = Path(__file__).parent / "projects"
FORMATS = ("ucf101-24", "jhmdb21", "json")
_FIELDS = {"name", "root", "format", "annotations", "frames", "splits", "labels", "defaults"}
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Project:
    """A project file, read. Paths are absolute or relative to the working folder.

    `frames` is a template with `{name}`; `splits` maps a subset to a list file, to "rest" (every annotated
    video that no other list names) or to "annotations" (the annotation file says). `labels` is empty where
    the annotations name them.
    """

    name: str
    root: Path
    format: str
    annotations: Path
    frames: str
    splits: dict[str, str]
    labels: tuple[str, ...]
    defaults: dict
    path: Path

    def frames_path(self, name: str) -> Path:
        """Where video `name` lies: a video file or a folder of pictures. InputError for a name that leaves the root."""
        parts = PurePosixPath(name).parts
        if not name or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            raise InputError(f"{self.annotations}: video name {name!r} would lie outside {self.root}; rename it")
        return self.root / self.frames.replace("{name}", name)


def project_names() -> list[str]:
    """The built-in data sets."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yml"))


def load_project(
    dataset: str | Project, data_root: str | Path = "data", overrides: Mapping[str, object] | None = None
) -> Project:
    """The project file of a built-in data set's name, or of a path to a user's own `.yml`.

    A built-in data set lies in `<data_root>/<name>`; a user's own `root` is relative to its file.
    `overrides` replaces fields. InputError names the file and the field that is wrong.
    """
    if isinstance(dataset, Project):
        return dataset
    own = dataset.endswith((".yml", ".yaml"))
    path = Path(dataset) if own else BUILT_IN / f"{dataset}.yml"
    if not own and dataset not in project_names():
        known = ", ".join(project_names())
        raise InputError(f"--dataset {dataset}: no such data set; there are {known}, or give a path to a .yml")
    fields = {**_read_yaml(path), **(overrides or {})}
    if unknown := sorted(fields.keys() - _FIELDS):
        raise InputError(f"{path}: field {unknown[0]!r} does not exist; there are {', '.join(sorted(_FIELDS))}")
    for field in ("name", "annotations", "frames", "splits"):
        if field not in fields:
            raise InputError(f"{path}: field {field!r} is missing")
    if fields.get("format", "json") not in FORMATS:
        raise InputError(f"{path}: format {fields['format']!r}: choose from {', '.join(FORMATS)}")
    if "{name}" not in str(fields["frames"]):
        raise InputError(f"{path}: frames must hold {{name}}, as in videos/{{name}}.avi")
    for field, kind in (("splits", dict), ("defaults", dict), ("labels", list)):
        if not isinstance(fields.get(field, kind()), kind):
            raise InputError(f"{path}: {field} must be a {'list' if kind is list else 'mapping'}")
    labels = tuple(str(label) for label in fields.get("labels", []))
    if len(set(labels)) != len(labels):
        raise InputError(f"{path}: a label stands twice in labels")
    root = path.parent / str(fields.get("root", ".")) if own else Path(data_root) / str(fields["name"])
    return Project(
        name=str(fields["name"]),
        root=root,
        format=fields.get("format", "json"),
        annotations=root / str(fields["annotations"]),
        frames=str(fields["frames"]),
        splits={str(subset): str(value) for subset, value in fields["splits"].items()},
        labels=labels,
        defaults=dict(fields.get("defaults", {})),
        path=path,
    )


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path}: no such project file")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: too large for a project file")
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise InputError(f"{path}: aliases (*name) are not taken in a project file")
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable project file ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: not a project file (no fields)")
    return fields
