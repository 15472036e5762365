"""Tracks on disk: what `eval_qmm.py` writes and the later stages read.

A tar, one sample a video. Rows of its arrays are detections, track after track, each by frame: `frames` int64 (M,),
`boxes` float32 (M, 4) xyxy pixels, `scores` float32 (M,) person scores, `queries` float32 (M, d) of DETR's decoder,
`features` float32 (M, d) of the person encoder, `labels` int64 (M,) actions ("no action" is the index after the last
label, -1 that of a frame beside key frames, of which nothing is known), or of data with several actions at once uint8
(M, C), 1 for each of a frame's actions. Its json holds the video's `n_frames`, `width`, `height`, `fps`, the tracks'
`lengths` in rows, and the `settings` it was made with.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.box_ops import Track
from utils.misc import InputError, counted
from utils.storage.tars import TarStore


class TrackStore(TarStore):
    """The tracks of a subset, by video; query vectors and features are read where they are used.

    Videos in `bad` (name -> why) are left out, and those that could not be used when the tar was made are entered
    there. InputError when the tar is missing or damaged, or holds such videos and no `bad` is given.
    """

    def __init__(self, path: str | Path, made_by: str = "eval_qmm.py", bad: dict[str, str] | None = None) -> None:
        if not Path(path).is_file():
            others = ", ".join(sorted(p.stem for p in Path(path).parent.glob("*.tar"))) or "none"
            text = f"no tracks with these settings (there are: {others}); run {made_by} with the same linking flags"
            raise InputError(f"{path}: {text}")
        super().__init__(path, "tar of tracks")
        if self.bad and bad is None:
            n, why = counted(len(self.bad), "video"), next(iter(self.bad.values()))
            raise InputError(f"{path}: {n} could not be used, the first: {why}; leave them out with --skip_bad")
        if bad is not None:
            bad |= self.bad
            self.names = [name for name in self.names if name not in bad]
        if not self.names:
            raise InputError(f"{path}: holds no video that can be used; make it again with {made_by}")
        self.settings: dict = self.json(self.names[0]).get("settings", {})
        if "detector" not in self.settings:
            raise InputError(f"{path}: a tar of tracks of a former form; make it again with {made_by}")

    def tracks(self, name: str) -> list[Track]:
        """The video's tracks; `rows` are indices of the video's arrays."""
        frames, boxes, scores, labels = (self.read(name, c) for c in ("frames", "boxes", "scores", "labels"))
        rows, begin, tracks = np.arange(len(frames)), 0, []
        for person_id, length in enumerate(self.json(name)["lengths"]):
            part = slice(begin, begin + length)
            tracks.append(Track(frames[part], boxes[part], scores[part], rows[part], labels[part], person_id, name))
            begin += length
        return tracks

    def __iter__(self) -> Iterator[Track]:
        for name in self.names:
            yield from self.tracks(name)

    @property
    def models(self) -> dict[str, str | None]:
        """Which detector and person encoder made the tracks, as results hold it."""
        return {"detector_key": self.settings["detector"].get("key"), "encoder_hash": self.settings.get("encoder")}

    @property
    def width(self) -> int:
        """Width of a query vector."""
        return self.read(self.names[0], "queries", slice(0)).shape[1]

    def queries(self, track: Track) -> np.ndarray:
        """A track's query vectors, float32 (T, d)."""
        return self.read(track.video, "queries", slice(track.rows[0], track.rows[-1] + 1))
