"""Generated tubes for the tests of the metrics."""

from pathlib import Path

import numpy as np

from utils.box_ops import Tube
from utils.video_map import video_rankings

Tubes = dict[str, list[Tube]]


def random_case(seed: int, n_classes: int = 4, tied: bool = False) -> tuple[Tubes, Tubes]:
    """Predictions and ground truth with gaps, duplicates, wrong classes, people close together, videos without
    tubes or on one side only, and a last class without ground truth. With `tied`, scores repeat."""
    rs = np.random.RandomState(seed)
    pred: Tubes = {"only predicted": [_walk(rs, 0)]}
    gt: Tubes = {"only annotated": [_walk(rs, 0)], "empty": []}
    for v in range(6):
        name = f"v{v}"
        gt[name] = [_walk(rs, int(rs.randint(n_classes - 1))) for _ in range(rs.randint(0, 5))]
        pred[name] = [_walk(rs, int(rs.randint(n_classes))) for _ in range(rs.randint(0, 3))]
        for tube in gt[name]:
            for _ in range(rs.randint(0, 4)):
                kept = rs.rand(len(tube)) < rs.choice([0.6, 0.9, 1.0])
                kept[rs.randint(len(tube))] = True
                boxes = tube.boxes[kept] + rs.normal(0, rs.choice([1, 5, 15]), 4)
                label = tube.label if rs.rand() < 0.8 else int(rs.randint(n_classes))
                score = round(rs.rand(), 1) if tied else rs.rand()
                pred[name].append(Tube(tube.frames[kept], boxes, label, score))
    return pred, gt


def coarse_case(seed: int) -> tuple[Tubes, Tubes]:
    """Predictions and ground truth of boxes on a coarse grid, so that overlaps repeat, with several tubes of one person
    at a time."""
    rs = np.random.RandomState(seed)

    def tube() -> Tube:
        frames = rs.randint(8) + np.arange(rs.randint(1, 10))
        corners = np.broadcast_to(10.0 * rs.randint(0, 3, (rs.choice([1, len(frames)]), 2)), (len(frames), 2))
        return Tube(frames, np.concatenate([corners, corners + 20], 1), rs.randint(3), 0.5, rs.randint(-1, 3))

    pred, gt = ({f"v{v}": [tube() for _ in range(rs.randint(7))] for v in range(3)} for _ in range(2))
    return pred, gt


def shuffled(tubes: Tubes, seed: int) -> Tubes:
    """The same videos and tubes in another order."""
    rs = np.random.RandomState(seed)
    names = list(tubes)
    rs.shuffle(names)
    return {name: [tubes[name][k] for k in rs.permutation(len(tubes[name]))] for name in names}


def matches_of(
    pred: Tubes, gt: Tubes, num_classes: int, threshold: float, protocol: str = "voc"
) -> tuple[list[np.ndarray], np.ndarray]:
    """Of each class whether each detection is correct, by falling score, and the number of ground truths."""
    (classes,) = video_rankings(pred, gt, num_classes, [threshold], protocol)
    return [r.correct for r in classes], np.array([r.n_gt.sum() for r in classes], np.int64)


def _walk(rs: np.random.RandomState, label: int) -> Tube:
    frames = rs.randint(0, 20) + np.arange(rs.randint(1, 60))
    frames = frames[(rs.rand(len(frames)) < rs.choice([0.5, 1.0])) | (frames == frames[0])]
    step = rs.uniform(-1, 1, 2) * rs.choice([0.2, 1, 4])
    corner = rs.uniform(0, 60, 2) + np.outer(frames - frames[0], step)
    return Tube(frames, np.concatenate([corner, corner + rs.uniform(20, 60, 2)], 1), label, rs.rand())


def jhmdb21_case(fixtures: Path) -> tuple[Tubes, Tubes, dict[str, np.ndarray]]:
    """The 268 annotated test videos of JHMDB21, noisy predictions, and the AP that the ACT evaluation gives."""
    with np.load(fixtures / "video_map_jhmdb21.npz") as file:
        arrays = dict(file)
    both: list[Tubes] = []
    for kind in ("pred", "gt"):
        tubes: Tubes = {f"{v}": [] for v in range(268)} if kind == "gt" else {}
        ends = arrays[f"{kind}_length"].astype(int).cumsum()
        boxes = np.split(arrays[f"{kind}_boxes"], ends[:-1])
        for i, (video, label) in enumerate(zip(arrays[f"{kind}_video"], arrays[f"{kind}_label"], strict=True)):
            frames = int(arrays[f"{kind}_first_frame"][i]) + np.arange(len(boxes[i]))
            score = float(arrays["pred_score"][i]) if kind == "pred" else 1.0
            tubes.setdefault(f"{video}", []).append(Tube(frames, boxes[i], int(label), score))
        both.append(tubes)
    return both[0], both[1], arrays
