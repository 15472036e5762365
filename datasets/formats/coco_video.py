"""COCO with videos (MMTracking, TAO) and YouTube-VIS: one JSON of videos, images, annotations and categories.

`frame_id` of an image counts from 0; TAO's `frame_index`, the frame itself, wins where both are there. A box belongs to
the person `track_id` or `instance_id`. YouTube-VIS has one annotation a track, with a box or null for each frame.
Crowds are left out. Categories are the actions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datasets.formats import common
from datasets.formats.common import NO_ACTION, AnnotationFile, RawVideo, corners, refuse_names_of_nothing, whole_number
from datasets.formats.person_tubes import fill_steps, frame_step, joined_tubes, tubes_of_person
from utils.misc import InputError
from utils.storage.files import read_json, write_text

NOTHING = "none"


def read(
    path: Path,
    *,
    person_labels: Sequence[str] | None = None,
    no_action: Sequence[str] = NO_ACTION,
    fill: bool = False,
) -> AnnotationFile:
    """Read either; `person_labels` are the categories that are people, where not all are.

    Where a video's images are every n-th frame, `fill` interpolates between a person's boxes of two that follow each
    other.
    """
    content = read_json(path, "annotation file")
    if not isinstance(content, dict) or not isinstance(content.get("videos"), list):
        raise InputError(f"{path}: no 'videos': plain COCO has no time")
    categories = {c["id"]: str(c["name"]).strip() for c in content["categories"]}
    videos = {v["id"]: v for v in content["videos"]}
    images = _images(path, content.get("images", []), videos)
    people: dict[object, dict[object, dict[int, dict]]] = {id: {} for id in videos}  # of each video, by their tracks
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation.get('id')}"
        if annotation.get("iscrowd"):
            continue
        if annotation.get("category_id") not in categories:
            raise InputError(f"{where}: category {annotation.get('category_id')} is not in 'categories'")
        name = categories[annotation["category_id"]]
        if person_labels is not None and name not in person_labels:
            continue
        action = None if name in no_action else name
        for video, track, frame, box in _boxes(where, annotation, images, videos):
            actions = people[video].setdefault(track, {}).setdefault(frame, {})
            if action in actions:
                raise InputError(f"{where}: track {track} has two boxes of one category in frame {frame}")
            actions[action] = box
    shown: dict[object, dict[int, tuple]] = {id: {} for id in videos}  # of each video, by frame, an image's size
    for id, frame, *size in images.values():
        shown[id][frame] = size
    raw: dict[str, RawVideo] = {}
    for id, video in videos.items():
        frames = sorted(shown[id])
        step = frame_step(frames) if fill else 1
        tubes = []
        for number, (track, annotated) in enumerate(people[id].items()):
            person = track if isinstance(track, int) else number
            tubes += tubes_of_person(fill_steps(annotated, step), person, f"track {track}")
        of_images = (*next(iter(shown[id].values())), frames[-1] + 1) if frames else (0, 0, 0)
        keys = ("width", "height", "length")
        shape = [whole_number(video.get(key) or value) for key, value in zip(keys, of_images, strict=True)]
        name = _name(video)
        if name in raw:
            raise InputError(f"{path}: video {name!r} is there twice")
        raw[name] = RawVideo(*shape, tubes)
    return AnnotationFile(path, raw, [name for name in categories.values() if name not in no_action])


def _name(video: Mapping) -> str:
    """A video's name; that of YouTube-VIS is the folder of its images."""
    if "name" in video or not video.get("file_names"):
        return str(video["name"])
    return str(video["file_names"][0]).rpartition("/")[0]


def _images(path: Path, images: Sequence[Mapping], videos: Mapping) -> dict[object, tuple]:
    """Video, frame, width and height of each image by its id."""
    by_id = {}
    for image in images:
        where = f"{path}: image {image.get('id')}"
        frame = image.get("frame_index", image.get("frame_id"))
        if frame is None:
            raise InputError(f"{where}: neither frame_id nor frame_index")
        if image.get("video_id") not in videos:
            raise InputError(f"{where}: video {image.get('video_id')} is not in 'videos'")
        size = image.get("width") or 0, image.get("height") or 0
        if (number := whole_number(frame, f"image {image['id']}: frame")) >= common.MAX_FRAMES:
            raise InputError(f"{where}: {number} is no number of a video's frame")
        by_id[image["id"]] = image["video_id"], number, *size
    return by_id


def _boxes(where: str, annotation: Mapping, images: Mapping, videos: Mapping) -> Iterator[tuple]:
    """Video id, track, frame and xyxy box of an annotation's boxes."""
    if "bboxes" in annotation:
        if annotation.get("video_id") not in videos:
            raise InputError(f"{where}: video {annotation.get('video_id')} is not in 'videos'")
        for frame, box in enumerate(annotation["bboxes"]):
            if box is not None:
                yield annotation["video_id"], annotation["id"], frame, corners([box])[0]
        return
    track = annotation.get("track_id", annotation.get("instance_id"))
    if track is None:
        raise InputError(f"{where}: neither track_id nor instance_id: whose box is it?")
    if annotation.get("image_id") not in images:
        raise InputError(f"{where}: image {annotation.get('image_id')} is not in 'images'")
    video, frame, *_ = images[annotation["image_id"]]
    try:
        yield video, track, frame, corners([annotation["bbox"]])[0]
    except (KeyError, ValueError) as error:
        raise InputError(f"{where}: no bbox of four numbers ({error})") from None


def write(file: AnnotationFile, path: Path) -> list[str]:
    """Write one JSON; persons without action are of the category "none". Where an action ends and is done again is what
    it cannot hold."""
    refuse_names_of_nothing(file.labels)
    names = [*file.labels, NOTHING]
    content = {"categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)]}
    videos, images, annotations = [], [], []
    for v, (name, video) in enumerate(file.videos.items(), 1):
        size = {"width": video.width, "height": video.height}
        videos.append({"id": v, "name": name, **size})
        last = [video.n_frames - 1] if video.n_frames else []
        frames = sorted({*last, *(frame for tube in video.tubes for frame in tube.frames.tolist())})
        ids = {frame: len(images) + i for i, frame in enumerate(frames, 1)}
        images += [
            {"id": ids[f], "video_id": v, "frame_id": f, "file_name": f"{name}/{f:06d}.jpg", **size} for f in frames
        ]
        for tube in video.tubes:
            category = names.index(NOTHING if tube.label is None else tube.label) + 1
            for frame, (x0, y0, x1, y1) in zip(tube.frames.tolist(), tube.boxes.tolist(), strict=True):
                box = [round(side, 3) for side in (x0, y0, x1 - x0, y1 - y0)]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": ids[frame], "video_id": v, "category_id": category,
                     "track_id": tube.person_id, "bbox": box, "area": round(box[2] * box[3], 3), "iscrowd": 0}
                )  # fmt: skip
    content |= {"videos": videos, "images": images, "annotations": annotations}
    write_text(path, json.dumps(content, ensure_ascii=False))
    return joined_tubes(file.videos)
