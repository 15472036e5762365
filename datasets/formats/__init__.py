"""Annotation formats: one file each, registered in `FORMATS`; those that can be written too, in `WRITERS`.

A reader gives what the file says and judges only what has a place in its format (a line, a track, a region);
`datasets.annotations` checks the tubes of all formats alike. `read(path, *, option, ...)` takes what its files do not
say as keyword-only arguments, each one described in `datasets.formats.options`: fields of a project file, and keys of
the options of `python -m datasets.convert`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from datasets.formats import (
    ava,
    ava_writer,
    coco_video,
    cvat_video,
    cvat_writer,
    jhmdb21,
    label_studio,
    mot,
    multisports,
    project_json,
    ucf101_24,
    via3,
)
from datasets.formats.common import AnnotationFile
from datasets.formats.options import OPTIONS, Option
from utils.storage.files import parsing

FORMATS: dict[str, Callable[..., AnnotationFile]] = {
    "ucf101-24": ucf101_24.read,
    "jhmdb21": jhmdb21.read,
    "act_gt": jhmdb21.read,
    "multisports": multisports.read,
    "json": project_json.read,
    "ava": functools.partial(ava.read, start=0, rate=None, loose_boxes=True),
    "ava_csv": ava.read,
    "cvat": cvat_video.read,
    "cvat_video": cvat_video.read,
    "mot": mot.read,
    "coco": coco_video.read,
    "coco_video": coco_video.read,
    "label_studio": label_studio.read,
    "via3": via3.read,
}
"""The names that `format:` of a project file may have."""

WRITERS: dict[str, Callable[[AnnotationFile, Path], list[str]]] = {
    "json": project_json.write,
    "cvat": cvat_writer.write,
    "cvat_video": cvat_writer.write,
    "mot": mot.write,
    "coco": coco_video.write,
    "coco_video": coco_video.write,
    "ava": ava_writer.write,
    "ava_csv": ava_writer.write,
}
"""What annotations can be written as; a writer returns lines about what it could not carry over as it is."""


def options_of(format: str) -> dict[str, Option]:
    """The options that a format has, by name, beside `labels`, which goes with every one."""
    parameters = inspect.signature(FORMATS[format]).parameters.values()
    return {p.name: OPTIONS[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def read_annotation_file(path: Path, format: str, options: Mapping[str, object]) -> AnnotationFile:
    """Read an annotation file, or the folder that the format (of `FORMATS`) is.

    `options` are checked (`check_options`); those that the format lacks are left out.

    Raises:
        InputError: the file is damaged or not in this format, or an option is missing.
        OSError: it is missing.
    """
    path.stat()
    used = {name: value for name, value in options.items() if name in options_of(format)}
    with parsing(path, f"an annotation file of the format {format}"):
        return FORMATS[format](path, **used)
