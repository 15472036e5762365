"""Project files: one data set's labels, paths, formats, subsets and default thresholds."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import yaml

from datasets.formats import readers as annotation_formats
from utils.misc import InputError, did_you_mean

BUILT_IN = Path(__file__).parent / "projects"
_FIELDS = {
    "name": str, "root": str, "format": str, "annotations": (str, list), "frames": str,
    "splits": dict, "labels": list, "defaults": dict,
}  # fmt: skip
_REQUIRED = ("name", "format", "annotations", "frames", "splits")
DEFAULTS = {
    "qmm_psn_score_th": 0.95, "qmm_iou_th": 0.35, "psn_score_th": 0.9, "iou_th": 0.2, "sim_th": 0.5, "filter_length": 8,
    "iou_link_th": 0.3,    "time_cycle": 100, "no_action_weight": 1.0, "min_tube_length": 9,
}  # fmt: skip
"""Those of the published runs on JHMDB21, for what a project file leaves out."""
_MAX_BYTES = 2**20  # of a project file


@dataclass(frozen=True)
class Project:
    """A project file, read. `annotations` is the annotation file's path; `splits` is as in the file;
    `frames` is a path under `root` with `{name}` in it; `path` is the project file."""

    name: str
    root: Path
    format: str
    annotations: Path
    frames: str
    splits: dict[str, str | dict]
    labels: list[str]
    defaults: dict[str, float]
    path: Path

    @property
    def remedy(self) -> str:
        """What to do where a file of the data set is missing, as the end of an error line."""
        if self.path.parent != BUILT_IN:
            return f"see {self.path}"
        if self.name == "synthetic":
            return "render the data set with python -m datasets.synthetic, or name its folder's parent with --data_root"
        return "'Data sets' in README.md says where to get it, and --data_root where data sets lie"

    def split(self, subset: str) -> list[str]:
        """Names of the subset's videos, in the list's order, each once.

        A subset is a list file (one video name a line; UCF101's lists may carry `.avi` and a label number),
        `{all_but: other}` (the annotated videos that another subset does not name), or `{list: key, number: n}`
        (the n-th list under `key` in the annotation file, from 1). Raises InputError when the subset is
        unknown, its list is missing, or it is empty.
        """
        if subset not in self.splits:
            raise InputError(f"{self.path}: no subset {subset!r}; it has {', '.join(map(str, self.splits))}")
        rule = self.splits[subset]
        if isinstance(rule, str):
            source, names = self.root / rule, self._read_list(self.root / rule)
        elif "all_but" in rule:
            source = self.annotations
            others = set(self.split(rule["all_but"]))
            names = [n for n in annotation_formats.read_source(self).videos if n not in others]
        else:
            source = self.annotations
            names = annotation_formats.read_source(self).list(rule["list"], rule["number"])
        if not names:
            raise InputError(f"{source}: the subset {subset!r} is empty; give it videos or use another subset")
        return list(dict.fromkeys(names))

    def fill(self, args: Namespace, **sources: str) -> None:
        """Set each argument of `sources` that is None to the project file's default of the name given (names
        parted by blanks: the first that the file has), else to that of `DEFAULTS`."""
        for argument, names in sources.items():
            if getattr(args, argument) is None:
                known = [table[name] for table in (self.defaults, DEFAULTS) for name in names.split() if name in table]
                setattr(args, argument, known[0])

    def _read_list(self, path: Path) -> list[str]:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: no readable list of videos ({getattr(error, 'strerror', error)}); {self.remedy}"
            ) from None
        names = [line for line in lines if line]
        if self.format == "ucf101-24":
            names = [name.split()[0].removesuffix(".avi") for name in names]
        return names

    def frames_path(self, name: str) -> Path:
        """The video's file or folder of images; InputError when the name would lead outside the root."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise InputError(f"{self.annotations}: video name {name[:80]!r} is not a path below {self.root}")
        return self.root / self.frames.replace("{name}", name)


def known_projects() -> list[str]:
    """Names of the built-in project files."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yml"))


def load_project(dataset: str | Path, data_root: str | Path = "data", **overrides: object) -> Project:
    """The project that `--dataset` names: a built-in one, or the path of a `.yml` file.

    `root` is relative to a user's own file (default: its folder); a built-in data set's is
    `<data_root>/<name>`. `overrides` replace fields of the file. Labels that the file leaves out come
    from the annotations. Raises InputError naming the file and the field at fault.
    """
    path = Path(dataset)
    own = path.suffix in (".yml", ".yaml")
    if not own:
        path = BUILT_IN / f"{dataset}.yml"
        if str(dataset) not in known_projects():
            known = known_projects()
            near = did_you_mean(str(dataset), known)
            raise InputError(f"--dataset {dataset}: not one of {', '.join(known)}, nor the path of a .yml file{near}")
    fields = {**_read_yaml(path), **overrides}
    _check(path, fields)
    root = path.parent / fields.get("root", ".") if own else Path(data_root) / fields["name"]
    if not own and "root" in overrides:
        root = Path(fields["root"])
    choices = [fields["annotations"]] if isinstance(fields["annotations"], str) else fields["annotations"]
    annotations = next((root / c for c in choices if (root / c).is_file()), root / choices[0])
    project = Project(
        name=fields["name"],
        root=root,
        format=fields["format"],
        annotations=annotations,
        frames=fields["frames"],
        splits=fields["splits"],
        labels=fields.get("labels") or [],
        defaults=fields.get("defaults") or {},
        path=path,
    )
    if project.labels:
        return project
    labels = annotation_formats.read_source(project).labels
    if not labels:
        raise InputError(f"{path}: labels are missing, and {annotations} names none; add labels: [...]")
    return replace(project, labels=labels)


def _read_yaml(path: Path) -> dict:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than a project file can be")
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such project file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a readable project file ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: a project file is a mapping from field to value")
    return fields


def _check(path: Path, fields: dict) -> None:
    """InputError at the first field that is missing, unknown or of the wrong kind."""

    def fault(field: object, text: str) -> InputError:
        return InputError(f"{path}: {str(field)[:40]}: {text}")

    for field in _REQUIRED:
        if field not in fields:
            raise fault(field, "missing")
    for field, value in fields.items():
        if field not in _FIELDS:
            raise fault(field, f"not a field of a project file; known are {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[field]) and not (value is None and field in ("labels", "defaults")):
            raise fault(
                field, f"not a {'list' if _FIELDS[field] is list else 'mapping' if _FIELDS[field] is dict else 'text'}"
            )
    if fields["name"] != Path(fields["name"]).name or fields["name"] in (".", "..", ""):
        raise fault("name", "names a folder, so no slashes")
    if fields["format"] not in annotation_formats.FORMATS:
        raise fault("format", f"not one of {', '.join(annotation_formats.FORMATS)}")
    if "{name}" not in fields["frames"]:
        raise fault("frames", "needs {name}, the place of the video's name")
    annotations = fields["annotations"]
    if not annotations or not all(isinstance(a, str) for a in annotations):
        raise fault("annotations", "not a file's name")
    labels = fields.get("labels") or []
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise fault("labels", "not distinct names (quote yes, no, on, off and numbers)")
    for subset, rule in fields["splits"].items():
        listed = isinstance(rule, dict) and isinstance(rule.get("list"), str) and isinstance(rule.get("number"), int)
        rest = isinstance(rule, dict) and rule.get("all_but") in fields["splits"] and rule.get("all_but") != subset
        if not (isinstance(subset, str) and (isinstance(rule, str) or listed or rest)):
            raise fault(f"splits: {subset}", "not a list's file, {all_but: subset} or {list: key, number: n}")
        if (
            rest
            and isinstance(fields["splits"][rule["all_but"]], dict)
            and "all_but" in fields["splits"][rule["all_but"]]
        ):
            raise fault(f"splits: {subset}", "all_but names a subset that is itself a rest")
    for name, value in (fields.get("defaults") or {}).items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise fault(f"defaults: {name}", "not a number")
        if name not in DEFAULTS:
            raise fault(f"defaults: {name}", f"no such default; there are {', '.join(DEFAULTS)}")
        if name.endswith("_th") and not (-1 if name == "sim_th" else 0) <= value <= 1:
            raise fault(f"defaults: {name}", f"{value} is not between {-1 if name == 'sim_th' else 0} and 1")
