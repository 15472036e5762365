"""Annotation formats: one file each with `read(path) -> AnnotationFile`, registered in `FORMATS`.

A reader gives what the file says and judges nothing; `datasets.annotations` checks the tubes of all formats alike.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from datasets.formats import jhmdb21, project_json, ucf101_24
from datasets.formats.common import AnnotationFile
from utils.misc import InputError

FORMATS: dict[str, Callable[[Path], AnnotationFile]] = {
    "ucf101-24": ucf101_24.read,
    "jhmdb21": jhmdb21.read,
    "json": project_json.read,
}
"""The names that `format:` of a project file may have."""


def read_annotation_file(path: Path, format: str) -> AnnotationFile:
    """Read an annotation file; the last two are kept in memory until they change.

    Raises:
        InputError: the file is damaged or not in this format.
        OSError: it is missing.
    """
    stat = path.stat()
    return _read(path, format, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _read(path: Path, format: str, mtime: int, size: int) -> AnnotationFile:
    try:
        return FORMATS[format](path)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: not an annotation file of the format {format} ({reason})") from None
