"""Frames a second of linking on one core, 10 people in each, against what is asked and against loops over pairs."""

import numpy as np
import torch

from benchmarks.rows import Row, one_thread, seconds, show
from models.detectors import Detections
from models.linkers import LINKERS
from models.person_encoder import PersonEncoder, encode
from models.tube import Linker, link
from utils.box_ops import Track

FRAMES, PEOPLE, D = 2000, 10, 256
ASKED = 2000  # frames a second
END = 8  # consecutive frames without a link after which a track closes
SIM_TH = {"feature": 0.5, "iou": 0.3}


def wandering_people(n_frames: int, people: int, d: int = D, missed: float = 0.05, seed: int = 0) -> Detections:
    """Detections of people who wander through a video, in any order within a frame, each missed in some frames."""
    random = np.random.default_rng(seed)
    looks = random.normal(size=(people, d)) + 0.5 * random.normal(size=(n_frames, people, d))
    corner = random.uniform(0, 800, (people, 2)) + random.normal(0, 2, (n_frames, people, 2)).cumsum(0)
    boxes = np.concatenate([corner, corner + np.array([60, 100])], -1)
    order = random.permuted(np.tile(np.arange(people), (n_frames, 1)), axis=1)
    frame, place = np.nonzero(random.random((n_frames, people)) >= missed)
    who = order[frame, place]
    scores = random.uniform(0.5, 1, len(frame))
    return Detections(frame, *(part.astype(np.float32) for part in (scores, boxes[frame, who], looks[frame, who])))


def similarity(a: np.ndarray, b: np.ndarray, cue: str) -> float:
    """Of two features their cosine, of two boxes their IoU."""
    if cue == "feature":
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    return float(inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter))


def link_by_loops(frame: np.ndarray, cues: np.ndarray, sim_th: float, cue: str, end: int = END) -> list[list[int]]:
    """The definition written down: the rows of each track, in the order in which tracks begin.

    In each frame the most similar pair of an open track's newest row and a row of the frame is linked, again and again
    while its similarity is at least `sim_th`; unmatched rows start tracks; a track closes after `end` frames.
    """
    tracks: list[list[int]] = []
    for current in np.unique(frame).tolist():
        unmatched = np.flatnonzero(frame == current).tolist()
        open_tracks = [track for track in tracks if current - frame[track[-1]] <= end]
        while open_tracks and unmatched:
            pairs = [(similarity(cues[t[-1]], cues[row], cue), t, row) for t in open_tracks for row in unmatched]
            best, track, row = max(pairs, key=lambda pair: pair[0])
            if best < sim_th:
                break
            track.append(row)
            open_tracks = [other for other in open_tracks if other is not track]
            unmatched.remove(row)
        tracks += [[row] for row in unmatched]
    return tracks


def same_rows(tracks: list[Track], expected: list[list[int]]) -> bool:
    """Whether tracks consist of the expected rows, in any order of tracks."""
    return sorted(track.rows.tolist() for track in tracks) == sorted(expected)


@one_thread()
def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    torch.manual_seed(0)
    encoder = PersonEncoder(skip=True).eval()
    whole, some = wandering_people(FRAMES, PEOPLE), wandering_people(FRAMES // 40, PEOPLE)

    def linked(detections: Detections, cue: str) -> list[Track]:
        features = encode(encoder, detections.queries) if cue == "feature" else None
        return link(detections.frames, detections.boxes, detections.scores, features, SIM_TH[cue], END, cue)

    rows = []
    for cue, sim_th in SIM_TH.items():
        cues = encode(encoder, some.queries) if cue == "feature" else some.boxes
        expected = link_by_loops(some.frames, cues, sim_th, cue)
        if not same_rows(linked(some, cue), expected):
            raise AssertionError("linking and its loops differ")
        rate = FRAMES / seconds(lambda cue=cue: linked(whole, cue))
        slow = FRAMES / 40 / seconds(lambda c=cues, s=sim_th, k=cue: link_by_loops(some.frames, c, s, k), 1)
        what = f"linking {PEOPLE} people a frame by {cue}, 1 core"
        rows.append(Row(f"{what} / asked", rate, ASKED, "frames/s", at_least=1))
        rows.append(Row(f"{what} / loops over pairs", rate, slow, "frames/s"))

    def robust() -> None:
        linker = Linker(SIM_TH["feature"], END, options=LINKERS["robust"])
        linker.extend(whole.frames, whole.boxes, whole.scores, encode(encoder, whole.queries))
        linker.finish()

    what = f"linking {PEOPLE} people a frame by --linker robust, 1 core / asked"
    return [*rows, Row(what, FRAMES / seconds(robust), ASKED, "frames/s", at_least=1)]


if __name__ == "__main__":
    show(__doc__, measure)
