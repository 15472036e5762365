"""Project files: one data set's labels, paths, formats, subsets and default thresholds."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from datasets.formats import FORMATS, AnnotationFile, options_of, read_annotation_file
from datasets.formats.options import FIELDS, check_options
from datasets.formats.sources import check_name, video_path
from datasets.sampling import ALL_FRAMES, FOLDER_FPS, Sampling
from utils.misc import InputError, did_you_mean
from utils.storage.files import read_text

if TYPE_CHECKING:
    from datasets.dataset import VideoFrames

BUILT_IN = Path(__file__).parent / "projects"
REQUIRED = ("name", "format", "annotations", "frames", "splits")
DEFAULTS = {
    "qmm_psn_score_th": 0.95, "qmm_iou_th": 0.35, "psn_score_th": 0.9, "iou_th": 0.2, "sim_th": 0.5, "filter_length": 8,
    "iou_link_th": 0.3, "end_consecutive_frames": 8, "time_cycle": 100, "no_action_weight": 1.0, "min_tube_length": 9,
}  # fmt: skip
"""Close to the published runs on JHMDB21 (exactly: `--preset published`), for what a project file leaves out."""


@dataclass(frozen=True)
class Project:
    """A project file.

    `annotations` is the annotation file's path; `splits` are as in the file; `frames` is a path under `root` with
    `{name}` in it; `path` is the project file's own; `options` are the fields that its format has beside these
    (`datasets.formats.options`); `sampling` says which frames of a video are used. With `multi_label` a person may do
    several actions in one frame, else one.
    """

    root: Path
    annotations: Path
    path: Path
    name: str
    format: str
    frames: str
    splits: dict[str, str | dict]
    labels: list[str] = dataclasses.field(default_factory=list)
    defaults: dict[str, float] = dataclasses.field(default_factory=dict)
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    sampling: Sampling = ALL_FRAMES
    multi_label: bool = False

    def default(self, name: str, *more: str, given: float | None = None) -> float:
        """What a flag gives; without it the project file's default of the first of these names that it gives, else that
        of `DEFAULTS`."""
        if given is not None:
            return given
        return next(table[key] for table in (self.defaults, DEFAULTS) for key in (name, *more) if key in table)

    @cached_property
    def annotation_file(self) -> AnnotationFile:
        """The annotation file, unchecked; InputError when it is missing, damaged or in another format."""
        known = {"videos": str(self.root / self.frames), "rate": self.sampling.rate}
        try:
            return read_annotation_file(self.annotations, self.format, {**known, **self.options})
        except OSError as error:
            text = f"{self.annotations}: annotation file cannot be read ({error.strerror}); {self._remedy()}"
            raise InputError(text) from None

    def split(self, subset: str) -> list[str]:
        """Names of a subset's videos, in the list's order, each once.

        A subset is a list file (one video name a line; UCF101's lists may carry `.avi` and a label number),
        `{all_but: other}` (the annotated videos that another subset does not name), or `{list: key, number: n}`
        (the n-th list under `key` in the annotation file, from 1).

        Raises:
            InputError: the subset is unknown or empty, or its list is missing.
        """
        if subset not in self.splits:
            raise InputError(f"{self.path}: no subset {subset!r}; it has {', '.join(map(str, self.splits))}")
        rule = self.splits[subset]
        if isinstance(rule, str):
            source, names = self.root / rule, self._read_list(self.root / rule)
        elif "all_but" in rule:
            others = set(self.split(rule["all_but"]))
            source, names = self.annotations, [n for n in self.annotation_file.videos if n not in others]
        else:
            lists, number = self.annotation_file.lists.get(rule["list"], []), rule["number"]
            if not 1 <= number <= len(lists):
                raise InputError(f"{self.annotations}: has no list {number} under {rule['list']!r}")
            source, names = self.annotations, lists[number - 1]
        if not names:
            raise InputError(f"{source}: the subset {subset!r} is empty; give it videos or use another subset")
        return list(dict.fromkeys(names))

    def frames_path(self, name: str) -> Path:
        """The video's file or folder of images; InputError when the name would lead outside the root."""
        check_name(name, self.root, self.annotations)
        return video_path(self.root / self.frames, name)

    def open_video(self, name: str) -> "VideoFrames":
        """The video's frames that are used, in order."""
        from datasets.dataset import VideoFrames  # PyAV and OpenCV only where a video is opened

        return VideoFrames(self.frames_path(name), self.sampling)

    def _read_list(self, path: Path) -> list[str]:
        try:
            lines = read_text(path).splitlines()
        except InputError as error:
            raise InputError(f"{error}; {self._remedy()}") from None
        names = [line.strip() for line in lines if line.strip()]
        if self.format == "ucf101-24":
            names = [name.split()[0].removesuffix(".avi") for name in names]
        return names

    def _remedy(self) -> str:
        """What to do where a file of the data set is missing, as the end of an error line."""
        if self.path.parent != BUILT_IN:
            return f"see {self.path}"
        if self.name == "synthetic":
            return "render the data set with python -m datasets.synthetic, or name its folder's parent with --data_root"
        return "'Data sets' in README.md says where to get it, and --data_root where data sets are"


def known_projects() -> list[str]:
    """Names of the built-in project files."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yml") if "." not in path.stem)  # others are presets


def project_path(dataset: str | Path) -> Path:
    """The project file that `--dataset` names."""
    return Path(dataset) if Path(dataset).suffix in (".yml", ".yaml") else BUILT_IN / f"{dataset}.yml"


def load_project(dataset: str | Path, data_root: str | Path = "data", **overrides: object) -> Project:
    """Load the project that `--dataset` names: a built-in one, or the path of a `.yml` file.

    A built-in data set's root is `<data_root>/<name>`, a user's own `root` is relative to the file (default: its
    folder). `overrides` replace fields of the file. InputError names the file and the field at fault.
    """
    path, known = project_path(dataset), known_projects()
    built_in = path != Path(dataset)
    if built_in and str(dataset) not in known:
        near = did_you_mean(str(dataset), known)
        raise InputError(f"--dataset {dataset}: not one of {', '.join(known)}, nor the path of a .yml file{near}")
    fields = {field: value for field, value in (read_yaml(path) | overrides).items() if value is not None}
    _check(path, fields)
    options = {field: value for field, value in fields.items() if field not in FIELDS}
    root = path.parent / fields.get("root", ".")
    if built_in:
        root = Path(overrides.get("root", Path(data_root) / fields["name"]))
    if "fill" in options_of(fields["format"]):
        options.setdefault("fill", True)  # a person without a box is background to the detector
    choices = [fields["annotations"]] if isinstance(fields["annotations"], str) else fields["annotations"]
    annotations = next((root / choice for choice in choices if (root / choice).exists()), root / choices[0])
    as_given = ("name", "format", "frames", "splits", "labels", "defaults", "multi_label")
    given = {field: fields[field] for field in as_given if field in fields}
    project = Project(root, annotations, path, options=options, sampling=_sampling(fields), **given)
    if not project.labels:
        project.labels.extend(project.annotation_file.labels)  # a changed copy would read the file again
    if not project.labels:
        raise InputError(f"{path}: labels are missing, and {project.annotations} names none; add labels: [...]")
    return project


def _sampling(fields: dict) -> Sampling:
    """Which frames are used: seconds of an annotation count from the file's beginning once `video_start` is off."""
    begin, end = fields.get("video_start", 0), fields.get("end")
    of_seconds = fields["format"] == "ava" and "rate" in fields and fields.get("time") != "frames"
    start = fields.get("start", 0) - begin if of_seconds else 0
    images = fields.get("image_rate", FOLDER_FPS), fields.get("image_offset", 0)
    return Sampling(fields.get("rate"), fields.get("stride", 1), start, None if end is None else end - begin, *images)


def read_yaml(path: Path) -> dict:
    """The mapping that a project file, or a preset, holds; InputError when it is not one."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such project file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a readable project file ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: a project file is a mapping from field to value")
    return fields


def _check(path: Path, fields: dict) -> None:
    """InputError at the first field that is missing, unknown or of the wrong kind, or does not go with the others."""

    def require(condition: bool, field: object, reason: str) -> None:
        if not condition:
            raise InputError(f"{path}: {field}: {reason}")

    for field in REQUIRED:
        require(field in fields, field, "missing")
    near = did_you_mean(str(fields["format"]), FORMATS)
    require(fields["format"] in [*FORMATS], "format", f"not one of {', '.join(FORMATS)}{near}")
    check_options(path, fields, {**options_of(fields["format"]), **FIELDS}, "a field of a project file")
    require(not ("rate" in fields and "stride" in fields), "rate", "says it alone; leave out stride")
    for field in ("end", "video_start"):
        require(field not in fields or fields["format"] == "ava", field, "only goes with format: ava")
    start, begin = fields.get("start", 0), fields.get("video_start", 0)
    text = f"{start} is before video_start {begin}, the first second of files"
    require("rate" not in fields or start >= begin, "start", text)
    require(fields.get("end", start) >= start, "end", f"is before start {start}")
    seconds = fields["format"] == "ava_csv" and fields.get("time") != "frames"  # of files that begin at second 900
    require(not seconds or fields.get("start", 900) == 900, "start", "of seconds only goes with format: ava")
    labels = fields.get("labels", [])
    require(len({*labels}) == len(labels), "labels", "names one of them twice")
    for subset, rule in fields["splits"].items():
        text = "not a list's file, {all_but: subset} or {list: key, number: n}"
        require(isinstance(subset, str) and _is_rule(rule, subset, fields["splits"]), f"splits: {subset}", text)
    for name, value in fields.get("defaults", {}).items():
        field, low = f"defaults: {name}", -1 if name == "sim_th" else 0
        require(name in DEFAULTS, field, f"no such default; there are {', '.join(DEFAULTS)}")
        require(FIELDS["end"].allows(value), field, f"is not {FIELDS['end'].kind}")
        require(not name.endswith("_th") or low <= value <= 1, field, f"{value} is not between {low} and 1")


def _is_rule(rule: object, subset: str, splits: dict) -> bool:
    """Whether `rule` says which videos the subset has; the other subset of an `all_but` says so by itself."""
    if not isinstance(rule, dict):
        return isinstance(rule, str)
    if "all_but" in rule:
        other = splits.get(rule["all_but"]) if isinstance(rule["all_but"], str) else None
        return other is not None and rule["all_but"] != subset and "all_but" not in other
    return isinstance(rule.get("list"), str) and isinstance(rule.get("number"), int)
