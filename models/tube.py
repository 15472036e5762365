"""Linking: the people of one video, followed frame by frame by the similarity of their features."""

import itertools
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.box_ops import Tube, paired_iou

if TYPE_CHECKING:
    from models.person_queries import Detections


class _Live:
    """A tube that is being built, in packed numbers: 36 bytes a linked query, where lists of objects take ten times
    as much and let memory grow with a video's length."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.frames, self.rows, self.boxes, self.scores = array("q"), array("q"), array("f"), array("f")


@dataclass(frozen=True)
class LinkedTube:
    """One person, followed. `frames` int64 (T,), `boxes` float32 (T, 4) xyxy pixels, `scores` float32 (T,)
    person scores, `rows` int64 (T,) which of the video's queries were linked (their running number); `number` counts
    the video's tubes in the order in which they began, those that are dropped later too."""

    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    number: int = -1

    def tube(self, person_id: int = -1) -> Tube:
        """The same as a region without a class, scored by its mean person score."""
        return Tube(self.frames, self.boxes, score=float(self.scores.mean()), person_id=person_id)


def greedy_links(similarity: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs (tube, query), each used at most once, by falling similarity down to `threshold` (inclusive).

    `similarity` float (n_tubes, n_queries). Equal similarities go to the older tube, then the earlier query.
    """
    candidates = np.flatnonzero(similarity.ravel() >= threshold)
    order = candidates[np.argsort(-similarity.ravel()[candidates], kind="stable")]
    n_queries = similarity.shape[1]
    tube_free = [True] * similarity.shape[0]
    query_free = [True] * n_queries
    left = min(similarity.shape)
    pairs = []
    for flat in order.tolist():
        tube, query = divmod(flat, n_queries)
        if tube_free[tube] and query_free[query]:
            tube_free[tube] = query_free[query] = False
            pairs.append((tube, query))
            left -= 1
            if left == 0:
                break
    return pairs


class ActionTubes:
    """The person tubes of one video, built by calling `update` for its frames in order.

    Each live tube is represented by its newest member. The most similar (tube, query) pair links first,
    down to `sim_th`; a query that is left starts a tube; a tube with no link for `end_consecutive_frames`
    frames is closed. Similarity is the cosine of person features (`link_cue="feature"`) or the IoU of
    boxes ("iou", the usual way, to compare with).
    """

    def __init__(
        self, video_name: str, sim_th: float, end_consecutive_frames: int = 8, link_cue: str = "feature"
    ) -> None:
        if link_cue not in ("feature", "iou"):
            raise ValueError(f"link_cue is feature or iou, not {link_cue!r}")
        self.video_name = video_name
        self.sim_th = sim_th
        self.end_consecutive_frames = end_consecutive_frames
        self.link_cue = link_cue
        self.tubes: list[LinkedTube] = []
        self._live: list[_Live] = []
        self._cues = np.empty((0, 0), np.float32)  # one row a live tube: unit feature, or box
        self._n_rows = self._n_tubes = 0
        self._last_frame = -1

    def update(self, frame: int, boxes: np.ndarray, scores: np.ndarray, features: np.ndarray) -> None:
        """Link the people found in `frame`.

        `boxes` float (n, 4) xyxy pixels, `scores` float (n,), `features` float (n, d) person features
        (ignored, and may be None, when linking by IoU); n may be 0. Frames come in rising order
        (ValueError), those without anybody may be left out.
        """
        if frame <= self._last_frame:
            raise ValueError(f"{self.video_name}: frame {frame} after frame {self._last_frame}")
        self._last_frame = frame
        self._close(frame)
        n = len(boxes)
        if n == 0:
            return
        if self.link_cue == "iou":
            cues = np.asarray(boxes, np.float32)
        else:
            cues = np.asarray(features, np.float32)
            cues = cues / np.maximum(np.linalg.norm(cues, axis=1, keepdims=True), 1e-12)
        tube_of = [-1] * n
        if self._live:
            similarity = paired_iou(self._cues[:, None], cues[None]) if self.link_cue == "iou" else self._cues @ cues.T
            for tube, query in greedy_links(similarity, self.sim_th):
                tube_of[query] = tube
                self._cues[tube] = cues[query]
        new = [query for query in range(n) if tube_of[query] < 0]
        for query in new:
            tube_of[query] = len(self._live)
            self._live.append(_Live(self._n_tubes))
            self._n_tubes += 1
        if new:
            self._cues = np.concatenate([self._cues.reshape(-1, cues.shape[1]), cues[new]])
        for query, (tube, box, score) in enumerate(zip(tube_of, boxes.tolist(), scores.tolist(), strict=True)):
            live = self._live[tube]
            live.frames.append(frame)
            live.rows.append(self._n_rows + query)
            live.boxes.extend(box)
            live.scores.append(score)
        self._n_rows += n

    def _close(self, frame: int) -> None:
        """Close the tubes whose last link is more than `end_consecutive_frames` frames before `frame`."""
        keep = [frame - live.frames[-1] <= self.end_consecutive_frames for live in self._live]
        if all(keep):
            return
        self.tubes += [_finished(live) for live, kept in zip(self._live, keep, strict=True) if not kept]
        self._live = [live for live, kept in zip(self._live, keep, strict=True) if kept]
        self._cues = self._cues[keep]

    def since(self, frame: int) -> list[LinkedTube]:
        """The tubes, closed or not, that have a link in `frame` or after it, as they stand."""
        live = [_finished(tube) for tube in self._live if tube.frames[-1] >= frame]
        return [tube for tube in self.tubes if tube.frames[-1] >= frame] + live

    def filter(self, n: int) -> list[LinkedTube]:
        """Close every tube and return those of at least `n` linked queries, by first frame."""
        while self._live:  # one at a time, so that only one is held twice
            self.tubes.append(_finished(self._live.pop()))
        self._cues = self._cues[:0]
        self.tubes = [tube for tube in self.tubes if len(tube.frames) >= n]
        self.tubes.sort(key=lambda tube: (tube.frames[0], tube.rows[0]))
        return self.tubes


def link_people(
    video_name: str,
    blocks: Iterable["Detections"],
    encode: Callable[[np.ndarray], np.ndarray] | None,
    sim_th: float,
    end_consecutive_frames: int = 8,
    link_cue: str = "feature",
) -> ActionTubes:
    """The people of a whole video: `blocks` of queries by rising frame (`models.person_queries.Detections`), each
    frame in one block; `encode` maps queries (n, d) to person features (n, d'), None when linking by IoU."""
    tubes = ActionTubes(video_name, sim_th, end_consecutive_frames, link_cue)
    for block in blocks:
        update_tubes(tubes, block, encode(block.queries) if encode else None)
    return tubes


def update_tubes(tubes: ActionTubes, block: "Detections", features: np.ndarray | None) -> None:
    """Link a run of frames: its queries by rising frame, and their person features (n, d') unless IoU links."""
    edges = np.flatnonzero(np.diff(block.frames, prepend=-1)).tolist()
    for a, b in itertools.pairwise([*edges, len(block.frames)]):
        found = None if features is None else features[a:b]
        tubes.update(int(block.frames[a]), block.boxes[a:b], block.scores[a:b], found)


def action_tubes(
    frames: np.ndarray,
    boxes: np.ndarray,
    probabilities: np.ndarray,
    topk: int = 1,
    min_length: int = 1,
    person_id: int = -1,
) -> list[tuple[Tube, np.ndarray]]:
    """One followed person -> the action tubes of at least `min_length` frames, each with its scores by frame (T',).

    `frames` int64 (T,), `boxes` (T, 4), `probabilities` (T, C + 1), the last of "no action". For each class among the
    `topk` of any frame, the frames that carry it form one action tube, scored by the mean of that class's
    probabilities there.
    """
    n_classes = probabilities.shape[1] - 1
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :topk]
    tubes = []
    for label in np.unique(top[top < n_classes]).tolist():
        carried = (top == label).any(1)
        if carried.sum() >= min_length:
            scores = probabilities[carried, label]
            tubes.append((Tube(frames[carried], boxes[carried], label, float(scores.mean()), person_id), scores))
    return tubes


def _finished(live: _Live) -> LinkedTube:
    return LinkedTube(
        np.array(live.frames, np.int64),
        np.array(live.boxes, np.float32).reshape(-1, 4),
        np.array(live.scores, np.float32),
        np.array(live.rows, np.int64),
        live.number,
    )
