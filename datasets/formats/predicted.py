"""What every format of predictions is read into, and the checks that need no data set."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.formats.common import MAX_FRAME
from utils.misc import InputError, counted
from utils.storage.files import not_a_number

OPTIONS = {
    "labels": "names of the classes, in the order of their numbers",
    "names": "the same, for MOT",
    "label_map": "number -> name of the classes",
    "videos": "names of the videos; for TubeR also key of a picture -> [name, frame from 0]",
    "video": "the video's name, for MOT",
    "sizes": "video -> [width, height] of its frames; for TubeR what its pixels are multiplied by",
    "first_label": "number of the first class",
    "first_frame": "number of the first frame",
    "boxes": "pixels, or shares of the frame's width and height",
    "picture": "[width, height], or WIDTHxHEIGHT: the picture that the boxes are pixels of, where not the frame",
    "short_side": "for TubeR: shorter side of the picture that the boxes are pixels of; None: `sizes` are factors",
    "label_type": "which of a 3D-RetinaNet file's kinds of labels",
    "multi_label": "yes: for TubeR, every class counts, not the best alone",
    "start": "for AVA: the second of frame 0",
    "rate": "for AVA: frames a second",
    "other_videos": "ignore: leave out videos that are not in the subset",
    "late_frames": "ignore: leave out boxes after a video's last frame",
    "n_frames": "ignore: take a video of another number of frames than annotated, whose frames are the same ones",
}
"""What a file of predictions does not say: its format's defaults, or what the data set or the user says."""
WHERE = " (--predictions_options, or the file of datasets.convert --options)"


class RawPredictions(NamedTuple):
    """The R boxes of n tubes as a file has them.

    names: of the videos; labels: of the classes. video, label, person: int64 (n,), of each tube the index of its
    video in `names`, its class and its person (-1 unknown); score: float64 (n,). tube: int64 (R,), the tube of each
    box, rising; frames: int64 (R,), from 0; boxes: float64 (R, 4) xyxy pixels of the video; scores: float64 (R,).
    shapes: of the videos where the file says it, width, height and number of frames, 0 where unknown.
    """

    names: list[str]
    labels: list[str]
    video: np.ndarray
    label: np.ndarray
    person: np.ndarray
    score: np.ndarray
    tube: np.ndarray
    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    shapes: dict[str, tuple[int, int, int]]


class TubeRows:
    """What a reader of predictions is given: the path and the options, and what it adds the file's tubes to."""

    def __init__(self, path: Path, options: Mapping) -> None:
        self.path, self.options = path, options
        self.first_label, self.first_frame = int(options.get("first_label", 0)), int(options.get("first_frame", 0))
        self._names: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}
        none = np.zeros(0, np.int64)
        self._parts: list[tuple] = [("", (), none, none, none, np.zeros(0), none, np.zeros((0, 6)))]
        self._n_tubes = 0

    @functools.cached_property
    def label_names(self) -> list[str]:
        """The names of the classes by their numbers; a gap in a label map is an empty name."""
        names = list(self.options.get("labels") or self.options.get("names") or [])
        if label_map := self.options.get("label_map"):
            by_number = {int(number): str(name) for number, name in label_map.items()}
            names = [by_number.get(number, "") for number in range(self.first_label, max(by_number) + 1)]
        if not names:
            raise self.fault("", f"the file does not name its classes; give the option labels: {OPTIONS['labels']}")
        return names

    def need(self, option: str) -> Sequence[str]:
        """An option that a format cannot do without."""
        if not self.options.get(option):
            raise self.fault("", f"the file does not say it; give the option {option}: {OPTIONS[option]}")
        return self.options[option]

    def video(self, name: object) -> int:
        """The index of a video's name among those so far, the name being added where it is new."""
        return self._names.setdefault(str(name), len(self._names))

    def shape(self, name: str, video: Mapping) -> None:
        """Keep a video's "width", "height" and "n_frames", where the file says them."""
        place, keys = f"video {name!r}", ("width", "height", "n_frames")
        self._shapes[name] = tuple(int(self._number(place, key, video.get(key) or 0)) for key in keys)

    def numbers(self, place: str, texts: Sequence[str]) -> list[float]:
        """Texts as numbers."""
        try:
            return [float(text) for text in texts]
        except ValueError as error:
            raise self.fault(place, not_a_number(error)) from None

    def fault(self, place: str, text: str) -> InputError:
        """The error of a place in the file, which may be empty."""
        return InputError(f"{self.path}: {place}{': ' * bool(place)}{text}")

    def add(
        self, place: str, video: str, label: object, rows: object, score: object = None, person: object = None
    ) -> None:
        """One tube: `rows` (T, 6) of a frame as the file counts it, x1, y1, x2, y2 and the frame's score.

        `score` is the tube's; None: the mean of its frames'.
        """
        try:
            rows = np.asarray(rows, np.float64)
        except (TypeError, ValueError):
            raise self.fault(place, "rows are not numbers, or not of one length") from None
        if not rows.size:
            raise self.fault(place, "a tube without frames")
        if rows.ndim != 2 or rows.shape[1] != 6:
            raise self.fault(place, f"an array of shape {rows.shape}, not (frames, 6): frame, x1, y1, x2, y2, score")
        label = self._number(place, "label", label)
        if score is None:  # the mean of equal numbers may differ from them in its last digit
            score = rows[0, 5] if (rows[:, 5] == rows[0, 5]).all() else rows[:, 5].mean()
        score = self._number(place, "score", score)
        person = -1 if person is None else int(self._number(place, "person_id", person))
        tube = np.full(len(rows), self._n_tubes)
        self._parts.append((place, (), [self.video(video)], [label], [person], [score], tube, rows))
        self._n_tubes += 1

    def add_boxes(
        self, kind: str, numbers: Sequence[int], videos: Sequence[int], labels: np.ndarray, rows: np.ndarray
    ) -> None:
        """R boxes that nobody linked, each a tube of one frame: `rows` (R, 6) as of `add`, `videos` (R,) as of `video`.

        `kind` and `numbers` (R,) say where each is in the file, such as "line" and 3.
        """
        nobody, tube = np.full(len(rows), -1), self._n_tubes + np.arange(len(rows))
        self._parts.append((kind, numbers, np.asarray(videos, np.int64), labels, nobody, rows[:, 5], tube, rows))
        self._n_tubes += len(rows)

    def done(self) -> RawPredictions:
        """All that was added, the boxes in pixels of their videos; InputError at the first that cannot be meant so."""
        video, label, person, score, tube, rows = map(np.concatenate, list(zip(*self._parts, strict=True))[2:])
        frames, low = rows[:, 0], self.first_frame
        finite = np.isfinite(rows).all(1) & np.isfinite(score)[tube]
        self._refuse(~finite, lambda row: f"a number is not finite ({_shown([*rows[row], score[tube[row]]])})")
        labels = list(self.options.get("labels") or filter(None, self.label_names))
        numbered = enumerate(self.label_names, self.first_label)
        index_of = {number: labels.index(name) for number, name in numbered if name in labels}
        classes, of_class = np.unique(label, return_inverse=True)
        index = np.array([index_of.get(value, -1) for value in classes.tolist()], np.int64)[of_class]
        self._refuse((index < 0)[tube], lambda row: self._label_fault(label[tube[row]]))
        whole = (frames == np.floor(frames)) & (np.abs(frames) < MAX_FRAME)
        self._refuse(~whole, lambda row: f"frame {frames[row]:g} is not a whole number")
        near = f"; if they count from {low - 1}, say first_frame={low - 1}{WHERE}" if low > 0 else ""
        self._refuse(
            frames < low,
            lambda row: f"frame {frames[row]:g}, but frames count from {low}" + near * bool(frames[row] == low - 1),
        )
        again = (np.diff(frames, prepend=np.inf) <= 0) & (np.diff(tube, prepend=-1) == 0)
        self._refuse(again, lambda row: f"frame {frames[row]:g} does not come after the one before it")
        boxes, frames = self._pixels(video[tube], rows[:, 1:5]), frames.astype(np.int64) - low
        of_tubes = video, index, person, score
        return RawPredictions(list(self._names), labels, *of_tubes, tube, frames, boxes, rows[:, 5], self._shapes)

    def _refuse(self, bad: np.ndarray, text: Callable[[int], str]) -> None:
        """InputError, with its place in the file, at the first of the `bad` rows, bool (R,), if any."""
        if bad.any():
            row = first = int(bad.argmax())
            for kind, numbers, *_, rows in self._parts:
                if first < len(rows):
                    raise self.fault(f"{kind} {numbers[first]}" if len(numbers) else kind, text(row))
                first -= len(rows)

    def _label_fault(self, value: float) -> str:
        """What is wrong with a class number that does not exist."""
        low, n = self.first_label, len(self.label_names)
        noun = "class" if low else "label"
        if value == low - 1 and low:
            near = f"; if from {low - 1}, say first_label={low - 1}{WHERE}"
            return f"{noun} {value:g}, but classes count from {low}{near}"
        if value == np.floor(value) and low <= value < low + n:
            name = self.label_names[int(value) - low]
            fault = f"{name!r}, which is not among the labels" if name else "not in the label map"
            return f"class {value:g} is {fault}"
        near = f"; if they count from {low + 1}, say first_label={low + 1}{WHERE}" if value == low + n else ""
        names = counted(n, "label") if noun == "label" else f"{n} class{'es' * (n > 1)}"
        return f"{noun} {value:g}, but there are {names} ({low} to {low + n - 1}){near}"

    def _pixels(self, video: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Boxes in pixels of their videos: from shares, or from pixels of another picture."""
        options = self.options
        shares, factors = options.get("boxes") == "shares", "short_side" in options
        if not len(boxes) or not (shares or factors or options.get("picture")):
            return boxes
        if shares and np.abs(boxes).max() > 2:
            box = _shown(boxes[np.abs(boxes).max(1).argmax()])
            near = f"; if it is pixels, say boxes=pixels{WHERE}"
            raise self.fault("", f"the box {box} is no share of the frame (0 to 1){near}")
        names = list(self._names)
        sizes = np.ones((len(names), 2))
        for i in np.unique(video):
            sizes[i] = (options.get("sizes") or {}).get(names[i], (0, 0))[:2]
            if not sizes[i].all():
                text = "its width and height are needed, but neither the annotation nor an option says them"
                raise self.fault(f"video {names[i]!r}", text)
        if options.get("short_side"):
            sizes = np.repeat(sizes.min(1, keepdims=True) / float(options["short_side"]), 2, 1)
        scale = sizes / (1 if shares or factors else np.array(options["picture"], np.float64))
        return boxes * scale[video][:, [0, 1, 0, 1]]

    def _number(self, place: str, name: str, value: object) -> float:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iuf":
            raise self.fault(place, f"{name} {str(value)[:40]!r} is not a number")
        return float(array.item())


def _shown(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
