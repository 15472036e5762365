"""The fields of a project file: those of every format, and each format's own, which say what its files do not.

One name has one meaning in all formats.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils.misc import InputError, did_you_mean


class Option(NamedTuple):
    """`kind` completes "is not ..."; `allows` says whether a value is of that kind."""

    kind: str
    allows: Callable[[object], bool]
    meaning: str = ""


def _is_number(value: object, above: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < 1e9


def _is_whole(value: object, low: float) -> bool:
    return isinstance(value, int) and _is_number(value, low - 1)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _sizes(value: object) -> bool:
    pairs = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(pair, list) and len(pair) == 2 and all(_is_number(x, 0) for x in pair) for pair in pairs)


def _label_map(value: object) -> bool:
    ids = value if isinstance(value, dict) else []
    return _is_text(value) or (bool(ids) and all(str(number).isdecimal() for number in ids))


text = partial(Option, "a text", _is_text)
names = partial(Option, "a list of names (quote yes, no, on, off and numbers)", _is_names)
switch = partial(Option, "true or false", lambda value: isinstance(value, bool))
any_number = partial(Option, "a number", lambda value: _is_number(value, -1e9))
per_second = partial(Option, "a number above 0 and below 1000", lambda value: _is_number(value, 0) and value < 1000)
number = partial(Option, "a number above 0", lambda value: _is_number(value, 0))
positive = partial(Option, "a whole number from 1", lambda value: _is_whole(value, 1))
count = partial(Option, "a whole number from 0", lambda value: _is_whole(value, 0))
mapping = partial(Option, "a mapping", lambda value: isinstance(value, dict))

FIELDS: dict[str, Option] = {
    "name": Option("a folder's name, without slashes", lambda v: _is_text(v) and v == Path(v).name and v != ".."),
    "root": text(),
    "format": text(),
    "annotations": Option("a file's name, or a list of such", lambda v: _is_text(v) or (_is_names(v) and v != [])),
    "frames": Option("a path with {name}, which the video's name replaces", lambda v: _is_text(v) and "{name}" in v),
    "splits": mapping(),
    "labels": names(),
    "defaults": mapping(),
    "rate": per_second(),
    "stride": Option("a whole number from 1 to 999", lambda v: _is_whole(v, 1) and v < 1000),
    "multi_label": switch(),
    "end": any_number(),
    "video_start": any_number(),
    "image_rate": per_second(),
    "image_offset": Option("a whole number", lambda v: _is_whole(v, -1e9)),
}
"""Those of every format; docs/own_data.md says what they mean."""

OPTIONS: dict[str, Option] = {
    "labels": names("the actions, in the order of the label indices"),
    "label_map": Option(
        "a file's name or a mapping from class id to name",
        _label_map,
        "the names of the class ids: a .pbtxt beside the annotation, or a mapping",
    ),
    "subsets": mapping("of a folder: the file of each subset, whose videos are a list of that name"),
    "videos": text("the path of a video, with {name} in it: where sizes and rates are read from"),
    "excluded": names("files of the key frames that are left out"),
    "included": text("the file of the seconds that are key frames, of every video"),
    "other_classes": switch("rows of classes outside the label map are boxes without a label, not a mistake"),
    "time": Option(
        "'seconds' or 'frames'", lambda value: value in ("seconds", "frames"), "what the second column counts"
    ),
    "rate": number("frames a second: how often a video is looked at"),
    "loose_boxes": switch("a row without a person's id is a person by itself"),
    "person_iou": number("IoU at which two tubes that meet in time are one person's"),
    "clips": switch("videos are clips <name>_<first second>_<last second>; rows have the source's name and second"),
    "person_per_label": switch("a person's id is one among those of its class"),
    "action_attribute": text("the attribute that holds the action; without it the track's label is the action"),
    "action_attributes": names("the attributes that hold actions"),
    "person_attribute": text("the attribute that tells people apart"),
    "person_labels": names("labels of tracks that are people; without it all are"),
    "no_action": names("values that stand for no action, beside the empty one"),
    "names": names("the classes, from 1"),
    "annotation_ids": Option("a list of ids", lambda v: isinstance(v, list), "the annotations that count"),
    "video": text("the video's name, where the file has none"),
    "start": count("the source video's frame of the first annotated one; of AVA the second that frame 0 stands for"),
    "step": positive("frames of the source video from one annotated frame to the next"),
    "fill": switch("interpolate the source video's frames between annotated ones"),
    "fps": number("frames a second of the video"),
    "width": positive("width of all videos in pixels"),
    "height": positive("height of all videos in pixels"),
    "sizes": Option("a mapping from video to [width, height]", _sizes, "width and height of each video in pixels"),
    "frame_step": positive("numbers from one annotated image's name to the next"),
    "first": count("the number in the name of the first image"),
}


def check_options(where: object, options: Mapping[str, object], known: Mapping[str, Option], noun: str) -> None:
    """InputError, naming it, at the first option that is not `noun`, one of the `known`, or is of the wrong kind."""
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise InputError(f"{where}: {str(name)[:40]}: not {noun}{hint}; known are {', '.join(known)}")
        if not known[name].allows(value):
            raise InputError(f"{where}: {name}: is not {known[name].kind}")


def needed(where: object, reason: str, *options: str) -> InputError:
    """The error of a file, or a place in one, that does not say something which no option says either."""
    asked = " or ".join(f"`{name}` ({OPTIONS[name].meaning})" for name in options)
    return InputError(f"{where}: {reason}; give {asked} in the project file, or to datasets.convert with --options")
