"""VIA 3 projects: rectangles on images `<video>_<number>.jpg`, or at times of a video.

Nothing is interpolated, and identity is an attribute's value. Options of an attribute are the actions.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.formats.common import NO_ACTION, AnnotationFile, RawVideo, corners
from datasets.formats.options import needed
from datasets.formats.person_tubes import tubes_of_person
from datasets.formats.sources import clock_of, size_of
from datasets.sampling import TOLERANCE
from utils.misc import InputError
from utils.storage.files import read_json

PARTS = ("project", "attribute", "file", "metadata", "view")
RECTANGLE = 2  # the first number of `xy`
TEXT, CHECKBOX = 1, 2  # types of attributes


def read(
    path: Path,
    *,
    person_attribute: str | None = None,
    action_attributes: Sequence[str] | None = None,
    first: int = 1,
    frame_step: int = 1,
    fps: float | None = None,
    width: int | None = None,
    height: int | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    no_action: Sequence[str] = NO_ACTION,
    videos: str | None = None,
) -> AnnotationFile:
    """Read a project; without `action_attributes`, every attribute with options but the person's is one.

    The frame of an image is (number - first) / frame_step, that of a time, where the player was paused, is the frame
    that was on screen.
    """
    content = read_json(path, "annotation file")
    if not isinstance(content, dict) or not all(part in content for part in PARTS):
        known = ", ".join(f"{part!r}" for part in PARTS)
        via2 = isinstance(content, dict) and any(str(key).startswith("_via") for key in content)
        raise InputError(f"{path}: {'this is a VIA 2' if via2 else 'not a VIA 3'} project (images); VIA 3 has {known}")
    attributes = {about["aname"]: {**about, "id": id} for id, about in content["attribute"].items()}
    if person_attribute is None:
        raise needed(path, "VIA has no tracks", "person_attribute")
    if action_attributes is None:
        action_attributes = [n for n, about in attributes.items() if about.get("options") and n != person_attribute]
    for name in [person_attribute, *action_attributes]:
        if name not in attributes:
            raise InputError(f"{path}: no attribute {name!r}; the project has: {', '.join(attributes)}")
    images = Counter(_image(file["fname"]) for file in content["file"].values())
    for (name, number), n in images.most_common(1):
        if n > 1:
            shown = name if number is None else f"{name}_{number}"
            raise InputError(f"{path}: {n} files are named {shown!r} and would be taken for one; rename them")
    people_of: dict[str, dict[str, dict]] = {name: {} for name, _ in images}
    for id, region in content["metadata"].items():
        if not region.get("xy") or region["xy"][0] != RECTANGLE:
            continue
        where = f"{path}: metadata {id}"
        video, frame = _moment(where, region, content, (first, frame_step), (fps, videos))
        actions = [a for n in action_attributes for a in _values(where, attributes[n], region) if a not in no_action]
        person = "".join(_values(where, attributes[person_attribute], region))
        if not person:
            raise InputError(f"{where}: attribute {person_attribute!r} is empty: whose box is it?")
        of_frame = people_of[video].setdefault(person, {}).setdefault(frame, {})
        if of_frame:
            raise InputError(f"{where}: person {person!r} has two boxes in frame {frame}")
        of_frame |= dict.fromkeys(actions or [None], corners([region["xy"][1:]])[0])
    raw = {}
    for name, people in people_of.items():
        tubes = []
        for number, (person, annotated) in enumerate(people.items()):
            tubes += tubes_of_person(annotated, number, f"person {person}")
        size = size_of(name, sizes, width, height) or (0, 0)
        raw[name] = RawVideo(int(size[0]), int(size[1]), 0, tubes)
    labels = [label.strip() for name in action_attributes for label in attributes[name].get("options", {}).values()]
    return AnnotationFile(path, raw, list(dict.fromkeys(label for label in labels if label not in no_action)))


def _values(where: str, attribute: Mapping, region: Mapping) -> list[str]:
    """What a region's attribute says: its text, or the names of the chosen options."""
    value = str(region["av"].get(attribute["id"], "")).strip()
    if attribute["type"] == TEXT or not value:
        return [value] if value else []
    chosen = [option.strip() for option in value.split(",")] if attribute["type"] == CHECKBOX else [value]
    for option in chosen:
        if option not in attribute["options"]:
            raise InputError(f"{where}: attribute {attribute['aname']!r} has no option {option}")
    return [attribute["options"][option].strip() for option in chosen]


def _moment(
    where: str, region: Mapping, content: Mapping, numbering: tuple[int, int], rate: tuple[float | None, str | None]
) -> tuple[str, int]:
    """Video and frame of a region."""
    if str(region["vid"]) not in content["view"]:
        raise InputError(f"{where}: view {region['vid']} is not in 'view'")
    files = content["view"][str(region["vid"])]["fid_list"]
    if len(files) != 1 or str(files[0]) not in content["file"]:
        raise InputError(f"{where}: view {region['vid']} does not show one file that is in 'file'")
    video, number = _image(content["file"][str(files[0])]["fname"])
    z = np.atleast_1d(region["z"])  # a number in the first versions
    if len(z) > 1:
        raise InputError(f"{where}: a rectangle over a stretch of time ({region['z']}); VIA moves none")
    if len(z):
        clock = clock_of(video, *rate)
        if clock is None:
            raise needed(where, "a time in seconds", "fps", "videos")
        return video, int(clock.frames_at(z + TOLERANCE)[0])
    if number is None:
        raise InputError(f"{where}: neither a time, nor a file named <video>_<number>")
    first, step = numbering
    if number < first or (number - first) % step:
        text = f"they count from {first} in steps of {step} (first, frame_step)"
        raise InputError(f"{where}: image number {number}, but {text}")
    return video, (number - first) // step


def _image(name: str) -> tuple[str, int | None]:
    """Video and number of an image's name; the number of a video file's is None."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    match = re.fullmatch(r"(.+)_(\d+)", stem)
    image = PurePosixPath(name).suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    return (match[1], int(match[2])) if match and image else (stem, None)
