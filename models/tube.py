"""Linking: a video's detections -> tracks, one for each followed person; and a track's action tubes."""

import itertools
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.linkers import LinkOptions, distinct_detections, join_tracks, second_detections
from utils.box_ops import Track, Tube, paired_iou
from utils.misc import InputError


@dataclass(frozen=True)
class LinkCue:
    """What tracks and detections are compared by. A new cue is one more entry of `LINK_CUES`, its default threshold one
    of `datasets.config.DEFAULTS`.

    Args:
        represent: boxes (n, 4) and person features (n, d) of n detections -> their representation (n, k).
        similarity: representations of tracks (t, k) and detections (n, k) -> similarities (t, n).
        default_th: the data set's default that `--sim_th` falls back to.
        needs_features: whether `represent` reads the person features, which may be None otherwise.
        mean: sums of several representations (t, k) -> the representations of their means (t, k); None where there is
            no such thing, so that no linker with a memory, or that joins tracks, goes with the cue.
    """

    represent: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]
    default_th: str
    needs_features: bool
    mean: Callable[[np.ndarray], np.ndarray] | None = None


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


LINK_CUES = {
    "feature": LinkCue(
        represent=lambda boxes, features: _unit(np.asarray(features, np.float32)),
        similarity=lambda tracks, detections: tracks @ detections.T,
        default_th="sim_th",
        needs_features=True,
        mean=_unit,  # a sum and a mean point the same way
    ),
    "iou": LinkCue(
        represent=lambda boxes, features: np.asarray(boxes, np.float32),
        similarity=lambda tracks, detections: paired_iou(tracks[:, None], detections[None]),
        default_th="iou_link_th",
        needs_features=False,
    ),
}
"""Values of `--link_cues`."""


def link(
    frames: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    features: np.ndarray | None,
    sim_th: float,
    end_consecutive_frames: int = 8,
    link_cues: str = "feature",
) -> list[Track]:
    """Associate a video's detections into tracks (greedy, frame by frame).

    Each open track is represented by its newest detection. In every frame the most similar (track, detection)
    pair is linked first, until no similarity reaches `sim_th`; unmatched detections start new tracks. A track
    closes when its last link is more than `end_consecutive_frames` frames back. See Omi et al. (2025).

    Args:
        frames: int64 (M,), non-decreasing.
        boxes: float32 (M, 4), xyxy pixels.
        scores: float32 (M,), person scores.
        features: float32 (M, d), person features; may be None with `link_cues="iou"`.
        sim_th: minimum cosine similarity (or IoU) of a link.
        end_consecutive_frames: consecutive frames without a link after which a track closes.
        link_cues: an entry of `LINK_CUES`.

    Returns:
        Tracks ordered by first frame; `rows` index the M detections, `person_id` counts the tracks.

    Raises:
        ValueError: `frames` decreases.
    """
    linker = Linker(sim_th, end_consecutive_frames, link_cues)
    linker.extend(frames, boxes, scores, features)
    return linker.finish()


class Linker:
    """`link`, for detections that come frame by frame.

    Args:
        sim_th, end_consecutive_frames, link_cues: as in `link`.
        options: deviations from the published rule (default: none).

    Raises:
        ValueError: there is no such cue.
        InputError: options that average representations, by a cue that has no mean.
    """

    def __init__(
        self,
        sim_th: float,
        end_consecutive_frames: int = 8,
        link_cues: str = "feature",
        options: LinkOptions | None = None,
    ) -> None:
        if link_cues not in LINK_CUES:
            raise ValueError(f"link_cues is one of {', '.join(LINK_CUES)}, not {link_cues!r}")
        self.sim_th, self.end_consecutive_frames = sim_th, end_consecutive_frames
        self.cue, self.options = LINK_CUES[link_cues], options or LinkOptions()
        if (self.options.memory > 1 or self.options.join) and self.cue.mean is None:
            raise InputError(f"--linker: averages person features, and a track has no mean {link_cues}")
        self._closed: list[_PackedTrack] = []
        self._open: list[_PackedTrack] = []
        self._recent: np.ndarray | None = None  # (t, memory, k): representations of each open track's newest detections
        self._n_rows = self._n_tracks = 0
        self._last_frame = -1

    def extend(self, frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, features: np.ndarray | None) -> None:
        """Link the next detections, of one or more whole frames; shapes and errors as in `link`."""
        edges = [0, *(np.flatnonzero(np.diff(frames)) + 1).tolist(), len(frames)]
        for first, end in itertools.pairwise(edges if len(frames) else []):
            features_of_frame = features[first:end] if self.cue.needs_features else None
            self._link_frame(int(frames[first]), boxes[first:end], scores[first:end], features_of_frame)

    def _link_frame(self, frame: int, boxes: np.ndarray, scores: np.ndarray, features: np.ndarray | None) -> None:
        if frame <= self._last_frame:
            raise ValueError(f"detections of frame {frame} after those of frame {self._last_frame}")
        self._last_frame = frame
        self._close(frame)
        representations = self.cue.represent(boxes, features)
        rows = np.arange(self._n_rows, self._n_rows + len(boxes))
        self._n_rows += len(boxes)
        if self.options.duplicates:
            similarity = self.cue.similarity(representations, representations)
            kept = distinct_detections(similarity, boxes, scores, self.options.duplicates)
            representations, rows, boxes, scores = (x[kept] for x in (representations, rows, boxes, scores))
        track_of = np.full(len(boxes), -1)
        if self._open:
            tracks = self.cue.mean(self._recent.sum(1)) if self.options.memory > 1 else self._recent[:, 0]
            similarity = self.cue.similarity(tracks, representations)
            for track, detection in self.options.assignment(similarity, self.sim_th):
                track_of[detection] = track
        linked, new = np.flatnonzero(track_of >= 0), np.flatnonzero(track_of < 0)
        if self.options.echoes and len(linked) and len(new):
            similarity = self.cue.similarity(representations[new], representations[linked])
            new = new[~second_detections(similarity, boxes[new], boxes[linked], self.options.echoes)]
        track_of[new] = len(self._open) + np.arange(len(new))
        self._open += [_PackedTrack(self._n_tracks + i) for i in range(len(new))]
        self._n_tracks += len(new)
        kept = np.flatnonzero(track_of >= 0)
        tracks, rows, boxes, scores = (x[kept].tolist() for x in (track_of, rows, boxes, scores))
        for track, row, box, score in zip(tracks, rows, boxes, scores, strict=True):
            self._open[track].append(frame, row, box, score)
        self._remember(tracks, representations[kept])

    def _remember(self, tracks: list[int], representations: np.ndarray) -> None:
        """Take the representations (n, k) of n open tracks' new detections in place of their oldest."""
        if self._recent is None:
            self._recent = np.zeros((0, self.options.memory, representations.shape[1]), representations.dtype)
        if len(self._recent) < len(self._open):
            new = np.zeros((len(self._open) - len(self._recent), *self._recent.shape[1:]), representations.dtype)
            self._recent = np.concatenate([self._recent, new])
        slots = [(len(self._open[track].frames) - 1) % self.options.memory for track in tracks]
        self._recent[tracks, slots] = representations
        if self.options.join:
            for track, representation in zip(tracks, representations, strict=True):
                self._open[track].sum = self._open[track].sum + representation

    def _close(self, frame: int) -> None:
        """Close the tracks whose last link is too far back for `frame`."""
        stays = [frame - track.frames[-1] <= self.end_consecutive_frames for track in self._open]
        if not all(stays):
            self._closed += [track for track, stay in zip(self._open, stays, strict=True) if not stay]
            self._open = [track for track, stay in zip(self._open, stays, strict=True) if stay]
            self._recent = self._recent[stays]

    def tracks_since(self, frame: int) -> list[Track]:
        """The tracks, open or closed, with a detection in `frame` or later, as they are so far; never joined."""
        return [track.finish() for track in self._closed + self._open if track.frames[-1] >= frame]

    def finish(self) -> list[Track]:
        """Close all tracks, join them where the options say so, and return them, ordered by first frame."""
        packed = sorted(self._closed + self._open, key=lambda track: track.number, reverse=True)
        self._closed, self._open = [], []
        sums = [track.sum for track in reversed(packed)]
        tracks = [packed.pop().finish() for _ in range(len(packed))]  # memory holds one track twice, not all
        return join_tracks(tracks, np.array(sums), *self.options.join) if self.options.join else tracks


class _PackedTrack:
    """A track that is being built, in packed numbers: 36 bytes a detection, where lists of objects take ten times as
    much and let memory grow with a video's length. `sum` adds the representations of its detections."""

    def __init__(self, number: int) -> None:
        self.number, self.sum = number, 0.0
        self.frames, self.rows, self.boxes, self.scores = array("q"), array("q"), array("f"), array("f")

    def append(self, frame: int, row: int, box: list[float], score: float) -> None:
        self.frames.append(frame)
        self.rows.append(row)
        self.boxes.extend(box)
        self.scores.append(score)

    def finish(self) -> Track:
        frames, rows = np.array(self.frames, np.int64), np.array(self.rows, np.int64)
        boxes = np.array(self.boxes, np.float32).reshape(-1, 4)
        return Track(frames, boxes, np.array(self.scores, np.float32), rows, person_id=self.number)


def carried_actions(probabilities: np.ndarray, topk: int = 1, action_th: float | None = None) -> np.ndarray:
    """The actions that frames carry, bool (T, C).

    Args:
        probabilities: float (T, C + 1), the last class is "no action".
        topk: number of classes of a frame, the most probable ones, "no action" among them.
        action_th: minimum probability of an action, in place of `topk`.
    """
    if action_th is not None:
        return probabilities[:, :-1] >= action_th
    carries = np.zeros(probabilities.shape, bool)
    np.put_along_axis(carries, np.argsort(-probabilities, axis=1, kind="stable")[:, :topk], True, axis=1)
    return carries[:, :-1]


def action_tubes(
    frames: np.ndarray,
    boxes: np.ndarray,
    probabilities: np.ndarray,
    topk: int = 1,
    min_length: int = 1,
    person_id: int = -1,
    action_th: float | None = None,
) -> list[Tube]:
    """A track's action tubes.

    For each class that any frame carries (`carried_actions`), the frames that carry it form one action tube. Its
    `frame_scores` are that class's probabilities there, its score their mean.

    Args:
        frames: int64 (T,), boxes: float (T, 4), of the track.
        probabilities: float (T, C + 1), the last class is "no action".
        topk, action_th: as of `carried_actions`.
        min_length: minimum frames of an action tube.
        person_id: the track's number, which its action tubes take.
    """
    carries = carried_actions(probabilities, topk, action_th)
    tubes = []
    for label in np.flatnonzero(carries.any(0)).tolist():
        carried = carries[:, label]
        if carried.sum() >= min_length:
            scores = probabilities[carried, label]
            tubes.append(Tube(frames[carried], boxes[carried], label, float(scores.mean()), person_id, scores))
    return tubes
