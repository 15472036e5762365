"""Frames a second of linking on one core, 10 people in each, against what is asked and against loops over pairs."""

from functools import partial

import numpy as np
import torch

from benchmarks.rows import Row, one_thread, seconds, show
from models.person_encoder import PersonEncoder, encode
from models.person_queries import Detections
from models.tube import LinkedTube, link_people

FRAMES, PEOPLE, D = 2000, 10, 256
ASKED = 2000  # frames a second
END = 8  # frames without a link that end a tube
SIM_TH = {"feature": 0.5, "iou": 0.3}


def wandering_people(n_frames: int, people: int, d: int = D, missed: float = 0.05, seed: int = 0) -> Detections:
    """People who wander through a video, found in frames in any order, each missed in some of them."""
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
    """The definition written down: the rows of each tube, in the order in which tubes begin.

    In each frame the most similar pair of a live tube's newest row and a row of the frame links, again and again
    down to `sim_th`; the rows that are left start tubes; a tube without a link for `end` frames is closed.
    """
    tubes: list[list[int]] = []
    for now in np.unique(frame).tolist():
        left = np.flatnonzero(frame == now).tolist()
        live = [tube for tube in tubes if now - frame[tube[-1]] <= end]
        while live and left:
            pairs = [(similarity(cues[tube[-1]], cues[row], cue), tube, row) for tube in live for row in left]
            best, tube, row = max(pairs, key=lambda pair: pair[0])
            if best < sim_th:
                break
            tube.append(row)
            live = [one for one in live if one is not tube]
            left.remove(row)
        tubes += [[row] for row in left]
    return tubes


def same_tubes(found: list[LinkedTube], expected: list[list[int]]) -> bool:
    """Whether the rows of the tubes are the same."""
    return sorted(tube.rows.tolist() for tube in found) == sorted(expected)


@one_thread()
def measure() -> list[Row]:
    """Rows (what, figure, yardstick, unit, bounds)."""
    torch.manual_seed(0)
    encoder = PersonEncoder(skip=True).eval()
    whole, some = wandering_people(FRAMES, PEOPLE), wandering_people(FRAMES // 40, PEOPLE)
    rows = []
    for cue, sim_th in SIM_TH.items():
        features_of = partial(encode, encoder) if cue == "feature" else None
        link = partial(link_people, "video", encode=features_of, sim_th=sim_th, link_cue=cue)
        cues = encode(encoder, some.queries) if features_of else some.boxes
        expected = link_by_loops(some.frames, cues, sim_th, cue)
        if not same_tubes(link([some]).filter(1), expected):
            raise AssertionError("linking and its loops differ")
        rate = FRAMES / seconds(lambda link=link: link([whole]).filter(8))
        slow = FRAMES / 40 / seconds(lambda c=cues, s=sim_th, k=cue: link_by_loops(some.frames, c, s, k), 1)
        what = f"linking {PEOPLE} people a frame by {cue}, 1 core"
        rows.append(Row(f"{what} / asked", rate, ASKED, "frames/s", at_least=1))
        rows.append(Row(f"{what} / loops over pairs", rate, slow, "frames/s"))
    return rows


if __name__ == "__main__":
    show(__doc__, measure)
