"""Plots: valid images that show what they were given, also where there is nothing to show."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from datasets.synthetic.people import ACTIONS
from datasets.synthetic.videos import plan, render
from utils.box_ops import Tube
from utils.drawing.draw import WHITE, colour_of
from utils.drawing.plots import CELL, DPI
from utils.misc import InputError, rng
from utils.plot_utils import (
    plot_features,
    plot_motion_recall,
    plot_precision_recall,
    plot_predictions,
    plot_similarity,
    plot_training,
    plot_tubes,
    read_metrics,
)

LABELS = list(ACTIONS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A plot that warns is a plot that looks wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def scene() -> tuple[list[np.ndarray], list[Tube]]:
    """Synthetic frames and their people's tubes."""
    drawn = next(p for n in range(99) if len((p := plan(rng(5, n), 24, 160, 120, 3)).looks) == 3)
    frames, boxes, _ = zip(*(render(drawn, t) for t in range(24)), strict=True)
    tubes = [Tube(np.arange(24), np.stack(boxes)[:, p], p, 1.0, p) for p in range(len(drawn.looks))]
    return [np.ascontiguousarray(frame[..., ::-1]) for frame in frames], tubes


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    assert image.std() > 1
    assert not list(path.parent.glob(".*part*"))
    return image[..., ::-1]


def share(image: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((image == colour).all(-1).mean())


def test_the_contact_sheet_shows_each_frame_with_its_boxes(tmp_path: Path, scene) -> None:
    frames, gt = scene
    pred = [Tube(gt[0].frames[:12], gt[0].boxes[:12] + 2, 1, 0.75, 0)]
    shown = [0, 5, 10, 15, 20]
    plot_predictions(tmp_path / "a.png", [frames[t] for t in shown], shown, pred, gt, LABELS, "clip")
    sheet = read(tmp_path / "a.png")
    height, width = CELL * 120 // 160, CELL
    assert sheet.shape[1] == 4 * (width + 8)
    assert sheet.shape[0] == pytest.approx(2 * height, rel=0.2)
    top = (sheet.shape[0] - 2 * height) // 4
    cells = [sheet[top * 2 :, i * (width + 8) :][: height - top, : width + 8] for i in range(4)]
    assert [share(cell, colour_of(0)) > 0.002 for cell in cells] == [True, True, True, False]
    plot_predictions(tmp_path / "b.png", [frames[0]], [0], [], [], LABELS)
    plain = read(tmp_path / "b.png")
    assert plain.shape[1] == width + 8
    plot_predictions(tmp_path / "b.png", [frames[0]], [0], [], gt, LABELS)
    annotated = read(tmp_path / "b.png")
    changed = (annotated != plain).any(-1)
    x0, y0, _, y1 = gt[0].boxes[0] * CELL / 160
    edge = changed[:, round(x0) + 4]
    assert 0.6 < edge[round(y0) + 26 * 2 : round(y1) + 26 * 2].mean() < 0.9  # dashes and gaps
    assert (annotated[changed] == WHITE).all(-1).mean() > 0.2
    assert 0 < changed.mean() < 0.3


def test_one_box_with_two_actions_has_one_caption(tmp_path: Path) -> None:
    frame, box = np.full((120, 160, 3), 128, np.uint8), np.array([[40, 60, 90, 110]])
    one, two, apart = (
        [Tube([0], box, 0, 0.5, 0), Tube([0], box, 1, 0.5, person)][:n] for n, person in ((1, 0), (2, 0), (2, 1))
    )
    shares = []
    for tubes in (one, two, apart):
        plot_predictions(tmp_path / "a.png", [frame], [0], tubes, [], LABELS)
        image = read(tmp_path / "a.png")
        shares.append((share(image, colour_of(0)), share(image, colour_of(1))))
    assert shares[0][1] == shares[1][1] == 0
    assert shares[1][0] > 1.2 * shares[0][0]
    assert shares[2][1] > 0


def test_tubes_in_space_and_time(tmp_path: Path, scene) -> None:
    _, gt = scene
    path = tmp_path / "a.png"
    plot_tubes(path, [], [], LABELS, (160, 120))
    empty = read(path)
    assert empty.shape == (4.8 * DPI, 9 * DPI, 3)
    plot_tubes(path, [], gt, LABELS, (160, 120))
    true = read(path)
    gap = Tube(np.delete(gt[1].frames, range(8, 14)), np.delete(gt[1].boxes, range(8, 14), 0), 1, 0.6, 1)
    plot_tubes(path, [gap, Tube([3], gt[0].boxes[3:4], 0, 0.5)], gt, LABELS, (160, 120), "clip")
    both = read(path)
    assert (true != empty).any(-1).mean() > 0.005
    assert (both != true).any(-1).mean() > 0.02
    assert share(both, colour_of(1)) > 0.0005 > share(true, colour_of(1))


def test_precision_and_recall_by_class(tmp_path: Path) -> None:
    path, none = tmp_path / "a.png", np.zeros(0, bool)
    blue = []
    for correct in ([True] * 5, [True, False, True, False, False]):
        plot_precision_recall(path, [np.array(correct), none, none], [5, 3, 0], ["walk", "run", "sit"])
        image = read(path)
        blue.append(((image[..., 2] > 200) & (image[..., 0] < 200)).mean())
    assert blue[0] > 2 * blue[1] > 0
    one = image.shape
    plot_precision_recall(path, [np.array([True])] * 9, [1] * 9, [f"class {i}" for i in range(9)], "act")
    assert read(path).shape[0] > 2 * one[0]
    plot_precision_recall(path, [none], [0], ["歩く"])
    read(path)


def test_long_names_and_many_of_them_stay_within_the_picture(tmp_path: Path) -> None:
    names = ["standing with arms crossed while looking at another person"] * 4 + [f"class {n:02d}" for n in range(80)]
    plot_precision_recall(tmp_path / "a.png", [np.ones(1, bool)] * 84, [1] * 4 + [0] * 80, names)
    image = read(tmp_path / "a.png")
    assert (image[30:75, -20:] == 255).all()  # titles
    assert (image[-40:, :15] == 255).all()  # classes without ground truth


def test_the_coloured_area_is_the_average_precision_of_the_protocol(tmp_path: Path) -> None:
    correct = [np.array([False, True, False, True, True])]
    for protocol in ("voc", "act", "multisports"):
        plot_precision_recall(tmp_path / f"{protocol}.png", correct, [4], ["walk"], protocol)
    voc, act, multisports = (read(tmp_path / f"{protocol}.png") for protocol in ("voc", "act", "multisports"))
    assert (voc == multisports).all() and (voc != act).any()  # the envelope, not the raw curve


def people(n: int = 3, frames: int = 8, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, person ids and frames, shuffled."""
    random = rng(n, frames)
    ids, times = np.repeat(np.arange(n), frames), np.tile(np.arange(frames) * 4, n)
    features = np.eye(n, 16)[ids] + noise * random.standard_normal((n * frames, 16))
    order = random.permutation(len(ids))
    return features[order], ids[order], times[order]


def test_the_similarity_matrix_is_sorted_by_person(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    features, ids, frames = people()
    plot_similarity(path, features, ids, frames)
    image = read(path).astype(int)
    order = rng(0).permutation(len(ids))
    plot_similarity(path, 3 * features[order], ids[order], frames[order])
    assert (read(path) == image).all()
    red = (image[..., 0] > image[..., 2] + 50)[:, : int(image.shape[1] * 0.78)]  # without the colour bar
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    block = red[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    thirds = [[part.mean() for part in np.array_split(band, 3, 1)] for band in np.array_split(block, 3)]
    assert (np.array(thirds) > 0.5).tolist() == np.eye(3, dtype=bool).tolist()
    ids[:4] = -1
    plot_similarity(path, features, ids, frames)
    assert (read(path) != image).any()


def test_features_have_their_persons_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    features, ids, frames = people(4)
    plot_features(path, features, ids, frames)
    image = read(path)
    assert image.shape == (5.2 * DPI, 7.4 * DPI, 3)
    assert [share(image, colour_of(i)) > 1e-4 for i in range(6)] == [True] * 4 + [False] * 2
    ids[ids == 2] = -1
    plot_features(path, features, ids, frames)
    assert share(read(path), colour_of(2)) == 0


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_features(tmp_path: Path, n: int) -> None:
    for plot in (plot_similarity, plot_features):
        plot(tmp_path / "a.png", np.ones((n, 3)), np.arange(n), np.zeros(n, int))
        read(tmp_path / "a.png")


def run_of(n: int) -> list[dict]:
    return [
        {"stage": "train_qmm", "epoch": e, "loss": 1 / e, "val_recall": None if e == 2 else 0.5, "lr": 0.1**e, "s": "x"}
        for e in range(1, n + 1)
    ]


def test_metrics_are_read_whole_or_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match="no such file"):
        read_metrics(path)
    path.write_text("")
    with pytest.raises(InputError, match="no epoch"):
        read_metrics(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in run_of(3)[::-1]) + '{"stage": "train_q')
    assert read_metrics(path) == run_of(3)


@pytest.mark.slow
def test_training_has_a_panel_for_each_metric(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    wide = []
    for metrics in (
        run_of(5),
        [{**line, "val_loss": 2.0} for line in run_of(5)],
        [{**m, "more": 1} for m in run_of(5)],
    ):
        plot_training(path, metrics)
        image = read(path)
        wide.append(image.shape)
        assert share(image, colour_of(6)) > 1e-4
    assert wide[0] == wide[1]  # held-out and training loss share a panel
    assert wide[2] != wide[0]
    for metrics in ([], run_of(1), [*run_of(4), {**run_of(5)[-1], "val_loss": 2.0}]):
        plot_training(path, metrics)
        read(path)


def test_recall_bars_are_as_high_as_the_recall(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    recall = {"feature": {"small": 1.0, "medium": 0.5, "large": float("nan")}, "iou": {"small": 0.25, "large": None}}
    plot_motion_recall(path, recall, {"small": 5, "medium": 2, "large": 1})
    image = read(path)
    heights = []
    for k in range(2):
        bars = (image == colour_of(k)).all(-1)[: int(image.shape[0] * 0.7)]  # without the legend
        columns = bars.sum(0)
        edges = np.flatnonzero(np.diff(np.r_[0, columns > 0, 0]))
        heights.append([int(columns[a:b].max()) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 5])
    assert [len(bars) for bars in heights] == [2, 1]
    assert np.array([*heights[0], *heights[1]]) / heights[0][0] == pytest.approx([1, 0.5, 0.25], abs=0.02)
    plot_motion_recall(path, {})
    read(path)


def test_a_plot_that_fails_leaves_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with pytest.raises(IndexError):
        plot_features(path, np.zeros((3, 2)), np.arange(3), np.arange(2))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlibs_windows_and_settings_are_left_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_motion_recall(tmp_path / "a.png", {"feature": {"small": 1.0}})
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
