"""What the page of an evaluation shows, as plain values (`utils.drawing.report.page.write_report`)."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube, Tubes, frames_and_boxes
from utils.metrics.average_precision import PROTOCOLS, average_precision, precision_recall
from utils.metrics.matching import candidates, matching, video_box_pairs
from utils.misc import counted
from utils.video_map import video_rankings

CURVE_POINTS = 100  # of a precision-recall curve, at most
LEFT_OUT = ("intervals", "errors", "confusion")  # of the metrics: have charts of their own, or none


class TubeError(NamedTuple):
    """A tube that is an error: `side` "gt" (missed) or "pred", its index among the video's tubes, and the cause."""

    side: str
    index: int
    cause: str


def wrong_tubes(pred: Tubes, gt: Tubes, n_classes: int, threshold: float, protocol: str) -> dict[str, list[TubeError]]:
    """Missed ground truth and false positives of every video, as they count in v-mAP."""
    errors: dict[str, list[TubeError]] = {name: [] for name in sorted({*pred, *gt})}
    c = candidates(pred, gt, n_classes, threshold, protocol)
    matched = matching(c, threshold)
    missed = (c.gt.label >= 0) & ~np.isin(np.arange(len(c.gt.label)), matched)
    sides = (("pred", c.pred.tubes, matched < 0, "false positive"), ("gt", c.gt.tubes, missed, "missed"))
    for side, tubes, wrong, cause in sides:
        for i in np.flatnonzero(wrong):
            errors[c.names[tubes[i].video]].append(TubeError(side, tubes[i].index, cause))
    return errors


def caused_errors(errors: Iterable[Mapping]) -> dict[str, list[TubeError]]:
    """The same of an analysis of errors, which names each one's cause (`utils.metrics.errors`)."""
    by_video: dict[str, list[TubeError]] = {}
    for error in errors:
        side = "gt" if error["kind"] == "miss" else "pred"
        by_video.setdefault(error["video"], []).append(TubeError(side, error["tube"], error["cause"]))
    return by_video


def video_entry(
    name: str,
    size: tuple[int, int, int],
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    errors: Iterable[TubeError] = (),
    events: Iterable[tuple[int, str]] = (),
    fps: float | None = None,
) -> dict:
    """A video of the page.

    Args:
        size: width, height and number of frames, 0 where unknown.
        errors: the tubes that are wrong; every cause is a count of the list.
        events: further errors, (frame, text).
        fps: frames a second, where the video's own file is not read; None: unknown, the page shows no seconds.
    """
    tubes = [tube for tube in [*pred, *gt] if len(tube)]
    corner = np.max([tube.boxes[:, 2:].max(0) for tube in tubes], 0).tolist() if tubes else [16, 9]
    width, height = (own or max(math.ceil(at), 1) for own, at in zip(size[:2], corner, strict=True))
    n_frames = max([size[2], 1, *(int(tube.frames[-1]) + 1 for tube in tubes)])
    colours = person_colours(pred, gt)
    entry = {"name": name, "width": width, "height": height, "fps": fps, "n_frames": n_frames}
    for side, word, own in (("gt", "ground truth", gt), ("pred", "track", pred)):
        entry[side] = [_tube(tube, word, _person(tube, i), colours[side]) for i, tube in enumerate(own)]
    causes = Counter()
    for error in errors:
        entry[error.side][error.index]["error"] = error.cause
        causes[error.cause] += 1
    entry["events"] = [{"frame": int(frame), "text": text} for frame, text in events]
    n_errors = causes.total() + len(entry["events"])
    return entry | {"counts": {"errors": n_errors, **causes, "predicted": len(pred)}}


def evaluation_page(
    title: str, facts: Mapping, labels: Sequence[str], metrics: Mapping, charts: list[dict], videos: list[dict]
) -> dict:
    """The page of an evaluation: `metrics` as in the results file, `charts` as from `curve_charts` and `part_charts`,
    `videos` of `video_entry`. Columns of the list of videos: errors, each cause that occurs, predicted tubes."""
    causes = {cause for video in videos for cause in video["counts"]} - {"errors", "predicted"}
    about = {"title": title, "facts": facts, "labels": labels, "metrics": single_metrics(metrics), "charts": charts}
    return about | {"columns": ["errors", *sorted(causes), "predicted"], "videos": videos}


def predicted_page(results: Mapping[str, Mapping], settings: Mapping) -> dict:
    """The page of videos without ground truth; `results` by name as in the JSON of `predict.py`, and its settings."""
    videos, labels = [], next(iter(results.values()))["labels"]
    for name, result in results.items():
        tubes = [
            Tube(tube["frames"], tube["boxes"], labels.index(tube["label"]), tube["score"], tube["person_id"])
            for tube in result["tubes"]
        ]
        for person in result["people"]:  # their frames without an action
            acting, _ = frames_and_boxes([tube for tube in tubes if tube.person_id == person["person_id"]])
            idle = ~np.isin(person["frames"], acting)
            frames, boxes = np.array(person["frames"])[idle], np.array(person["boxes"])[idle]
            if len(frames):
                tubes.append(Tube(frames, boxes, -1, float(np.mean(person["scores"])), person["person_id"]))
        size = result["width"], result["height"], result["n_frames"]
        counts = {"action tubes": len(result["tubes"]), "people": len(result["people"])}
        videos.append(video_entry(name, size, tubes, (), fps=result["fps"]) | {"counts": counts})
    facts = {name: str(value) for name, value in settings.items() if value is not None}
    page = evaluation_page(f"Predictions, {counted(len(videos), 'video')}", facts, labels, {}, [], videos)
    return page | {"columns": ["action tubes", "people"]}


def _person(tube: Tube, index: int) -> int:
    """A tube's person; one without is a person of its own, below 0."""
    return int(tube.person_id) if tube.person_id >= 0 else -1 - index


def _tube(tube: Tube, word: str, person: int, colours: Mapping[int, int]) -> dict:
    name = f"{word} {person}" if person >= 0 else f"{word} #{-1 - person}"
    entry = {"person": person, "name": name, "colour": colours[person], "label": int(tube.label)}
    return entry | {"score": round(float(tube.score), 4), "frames": tube.frames, "boxes": tube.boxes}


def person_colours(pred: Sequence[Tube], gt: Sequence[Tube]) -> dict[str, dict[int, int]]:
    """Each person's number in the palette (which begins anew at its end), by side; a track has that of the ground-truth
    person whom it covers most."""
    numbers = {side: [_person(tube, i) for i, tube in enumerate(tubes)] for side, tubes in (("gt", gt), ("pred", pred))}
    people = {side: sorted(set(own)) for side, own in numbers.items()}
    if not gt:
        return {"gt": {}, "pred": {person: max(person, -1 - person) for person in people["pred"]}}
    track, person = (
        np.repeat(np.searchsorted(people[side], numbers[side]), [len(tube) for tube in tubes])
        for side, tubes in (("pred", pred), ("gt", gt))
    )
    i, j, iou = video_box_pairs(pred, gt)
    shared = np.zeros((len(people["pred"]), len(people["gt"])))
    np.add.at(shared, (track[i], person[j]), iou)
    colours = {number: int(row.argmax()) for number, row in zip(people["pred"], shared, strict=True) if row.any()}
    others = [number for number in people["pred"] if number not in colours]
    colours |= {number: len(people["gt"]) + i for i, number in enumerate(others)}
    return {"gt": {number: i for i, number in enumerate(people["gt"])}, "pred": colours}


def single_metrics(metrics: Mapping) -> list[dict]:
    """The metrics that are one number, with their intervals; counts come last."""
    intervals = metrics.get("intervals", {})
    rows = [
        {"name": name, "value": value, "count": isinstance(value, int), **_bounds(intervals.get(name))}
        for name, value in metrics.items()
        if isinstance(value, int | float | None) and not (name == "videos_left_out" and not value)
    ]
    return sorted(rows, key=lambda row: row["count"])


def _bounds(interval: Sequence[float] | None) -> dict:
    return {"low": interval[0], "high": interval[1]} if interval else {}


def part_charts(
    metrics: Mapping, by_cue: Mapping[str, Mapping[str, Mapping[str, float | None]]] | None = None
) -> list[dict]:
    """A chart of every metric that has parts (classes, motion categories), of the causes of errors and of confusions.

    `by_cue`: metric -> link cue -> part -> value, for metrics that are shown for several link cues.
    """
    made, by_cue = [], by_cue or {}
    for name, parts in metrics.items():
        if not isinstance(parts, Mapping) or name in LEFT_OUT:
            continue
        title = f"{name} by {'motion' if 'motion' in name else 'class'}"
        cues = by_cue.get(name, {})
        bounds = metrics.get("intervals", {}).get(name, {})
        rows = [
            {"name": part, "value": values.get(part), **({"series": cue} if cue else _bounds(bounds.get(part)))}
            for part in parts
            for cue, values in (cues or {"": parts}).items()
        ]
        made.append({"kind": "bars", "title": title, "rows": rows})
    for name, errors in metrics.get("errors", {}).items():
        rows = []
        for cause, row in errors["causes"].items():  # the list of videos counts wrong tubes of both sides
            counts = counted(row["count"], "ground truth" if cause == "missed" else "false positive")
            rows.append({"name": cause, "value": row["gain"], "note": f"mAP, {counts}"})
        longest = max([row["value"] or 0 for row in rows], default=0) or 1  # undefined without ground truth
        title = f"Causes of error: gain of {name} if mended"
        made.append({"kind": "bars", "title": title, "rows": rows, "most": longest})
    for name, confusion in metrics.get("confusion", {}).items():
        labels = confusion["labels"]
        matrix = {"rows": labels, "columns": labels, "counts": confusion["counts"]}
        note = "rows: ground truth, columns: predicted; the shade is the share of the row"
        made.append({"kind": "matrix", "title": f"Confusion of {name}", "note": note, **matrix})
    return made


def curve_charts(
    pred: Tubes, gt: Tubes, labels: Sequence[str], thresholds: Sequence[float], protocol: str
) -> list[dict]:
    """Precision and recall by class, of those that are in the mean, at every threshold of 3D IoU; the first chart is
    unfolded. None where the protocol has no curves."""
    made: list[dict] = []
    if protocol not in PROTOCOLS:
        return made
    rankings = video_rankings(pred, gt, len(labels), thresholds, protocol)
    for threshold, classes in zip(thresholds, rankings, strict=True):
        curves = []
        for label, ranking in zip(labels, classes, strict=True):
            n, correct = int(ranking.n_gt.sum()), ranking.correct
            if not n or label in PROTOCOLS[protocol].left_out:
                continue
            kept = np.unique(np.linspace(0, max(len(correct) - 1, 0), min(len(correct), CURVE_POINTS)).astype(int))
            y, x = (values[kept].round(4).tolist() for values in precision_recall(correct, n))
            note = f"AP {average_precision(correct, n, protocol):.3f}, {counted(n, 'tube')}"
            curves.append({"name": label, "note": note, "x": [0.0, *x], "y": [1.0, *y]})
        title = f"Precision and recall of action tubes at 3D IoU {threshold:g}"
        chart = {"kind": "curves", "title": title, "x": "recall", "y": "precision", "curves": curves}
        made.append(chart | {"folded": threshold != thresholds[0]})
    return made


def worst(videos: Sequence[Mapping], n: int = 3) -> list[str]:
    """The names of the `n` videos with most errors, of those that have any."""
    wrong = [video for video in videos if video["counts"]["errors"]]
    return [video["name"] for video in sorted(wrong, key=lambda video: -video["counts"]["errors"])[:n]]
