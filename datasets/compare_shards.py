"""Whether shards are those of the project, subset, list and annotation that are trained on.

The list and the annotation are compared where they are on this machine; what cannot be compared is said in one line.
Videos are compared where they are here, too, and nothing is said of those that are not.
"""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from datasets.annotations import read_used_frames
from datasets.config import Project
from datasets.frame_batches import measure
from datasets.make_shards import REMEDY, annotation_checksum, is_url, project_settings, read_index, shards_folder
from datasets.stream_shards import StreamedClips
from datasets.use_shards import ClipDataset, Clips, ShardVideo
from utils.distributed import rank
from utils.misc import InputError, counted, tell

T = TypeVar("T")


def clips_of_flags(args: Namespace, project: Project, image_size: int, pad_square: bool) -> Clips:
    """The training clips that the flags of `utils.flags.add_clip_flags` ask for; InputError as of `ShardCheck`."""
    settings = {
        "n_frames": args.n_frames,
        "sampling_rate": args.sampling_rate,
        "image_size": image_size,
        "seed": args.seed,
        "clips_per_video": args.clips_per_video,
        "jitter": [args.jitter] * 3 + [args.jitter_hue],
        "pad_square": pad_square,
        "whole_videos": args.whole_videos,
        "mirror": args.mirror_frames or not args.no_flip,
        "mirror_frames": args.mirror_frames,
        "erase_people": args.erase_people,
    }
    if is_url(args.shards_path):
        check = ShardCheck(project, args.subset).video
        return StreamedClips(args.shards_path, args.clips_per_epoch, check=check, **settings)
    folder = shards_folder(args.shards_path, project, args.subset, args.data_root)
    return stored_clips(folder, project, args.subset, **settings)


def stored_clips(folder: str | Path, project: Project, subset: str, **settings: object) -> ClipDataset:
    """The `ClipDataset` of a folder of shards, compared with the project; InputError as of `ShardCheck`."""
    index = check_index(folder, project, subset)
    stored, wanted = index.get("settings", {}).get("image_size", 0), settings.get("image_size", 0)
    if 0 < stored < wanted and rank() == 0:
        tell(f"warning: {folder}: made with --image_size {stored}; its frames are enlarged to {wanted} pixels")
    clips, check = ClipDataset(folder, **settings), ShardCheck(project, subset)
    for video in clips.videos:
        check.video(video)
    missing = check.listed - clips.names - {*index.get("skipped", ())}
    if missing:
        text = f"{counted(len(missing), 'video')} of subset {subset!r} are missing, such as {min(missing)!r}"
        raise InputError(f"{folder}: {text}; {REMEDY}")
    return clips


def check_index(folder: str | Path, project: Project, subset: str) -> dict:
    """A folder's `index.json`; InputError where its shards are of another data set, subset or labels."""
    index = read_index(folder)
    for field, expected in (("dataset", project.name), ("subset", subset)):
        if index.get(field) != expected:
            text = f"its shards are of {field} {str(index.get(field))[:80]!r}, not {expected!r}"
            raise InputError(f"{folder}: {text}; {REMEDY}, or name others with --shards_path")
    if index.get("labels") != project.labels:
        raise InputError(f"{folder}: its shards have other labels than {project.path}, or another order; {REMEDY}")
    return index


class ShardCheck:
    """Compares videos of shards with a project's subset, whose list is `listed` (empty where it cannot be read).

    Prints one line where something cannot be compared on this machine.
    """

    def __init__(self, project: Project, subset: str) -> None:
        self._project, self._subset, self._warned = project, subset, False
        self.listed = self._if_here(lambda: {*project.split(subset)}) or set()
        self._file = self._if_here(lambda: project.annotation_file)

    def video(self, video: ShardVideo) -> None:
        """Raise InputError where a video is not of the subset, or its annotation, sampling or file has changed."""
        where = f"{video.where}: video {video.name[:80]!r}"
        if self.listed and video.name not in self.listed:
            raise InputError(f"{where} is not in subset {self._subset!r} of {self._project.path}; {REMEDY}")
        settings = {key: video.made_from[key] for key in ("sampling", "n_actions") if key in video.made_from}
        if settings != project_settings(self._project):
            raise InputError(f"{where} was made with another rate, stride, end or multi_label; {REMEDY}")
        annotation = self._if_here(lambda: self._annotation(video.name)) if self._file else None
        if annotation not in (None, video.made_from.get("annotation")):
            raise InputError(f"{where}: the annotation has changed since; {REMEDY}")
        path = self._project.frames_path(video.name)
        if path.exists() and measure(path) != video.made_from.get("source"):
            raise InputError(f"{where} was made from another file than {path} is now; {REMEDY}")

    def _annotation(self, name: str) -> int:
        """The checksum of a video's annotation; InputError where the video would be needed for it and is not here."""
        if name not in self._file.videos:
            return -1
        return annotation_checksum(read_used_frames(name, self._file, self._project)[0])

    def _if_here(self, read: Callable[[], T]) -> T | None:
        """What `read` gives, None where it cannot be read on this machine."""
        try:
            return read()
        except InputError as error:
            if not self._warned and rank() == 0:
                tell(f"warning: the shards of {self._subset!r} are not compared with the whole project: {error}")
            self._warned = True
            return None
