"""People over time: who does what in each frame, and the strip that shows it under a video."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.drawing.draw import WHITE, Colour, colour_of, fill, ink_on, put_text, text_size

ABSENT, IDLE = -2, -1  # in the strip's cells: not there, there without an action
GROUND, TRACK, GREY = (22, 22, 22), (44, 44, 44), (170, 170, 170)
PALE = 0.6  # how far the future fades into the ground
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)  # seconds between the axis' numbers


class Person(NamedTuple):
    """Somebody in one frame: `box` xyxy in pixels of the original frame; `label` an action, or any number that is
    no label's index (-1, n_classes) for none; `score` of that action in this frame."""

    person_id: int
    box: np.ndarray
    label: int
    score: float


@dataclass(frozen=True)
class PersonTrack:
    """A person through a video with an action in each frame.

    `frames` int64 (T,) strictly increasing, gaps allowed; `boxes` float32 (T, 4) xyxy in pixels of the
    original frame; `labels` int64 (T,) the action's index, or any number that is no label's index (-1,
    n_classes) for none; `scores` float32 (T,) of that action in that frame. `person_id` at least 0, one a track.
    Arrays are converted; ValueError when they do not fit each other or frames do not increase.
    """

    person_id: int
    frames: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (("frames", np.int64), ("boxes", np.float32), ("labels", np.int64), ("scores", np.float32)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind))
        n = len(self.frames)
        shapes = self.frames.shape, self.boxes.shape, self.labels.shape, self.scores.shape
        if shapes != ((n,), (n, 4), (n,), (n,)):
            raise ValueError(f"a track needs frames (T,), boxes (T, 4), labels (T,) and scores (T,), not {shapes}")
        if (np.diff(self.frames) <= 0).any():
            raise ValueError("a track's frames must be strictly increasing")

    def at(self, frame: int) -> Person | None:
        """The person in `frame`, None where the track has no such frame."""
        i = int(np.searchsorted(self.frames, frame))
        if i == len(self.frames) or self.frames[i] != frame:
            return None
        return Person(self.person_id, self.boxes[i], int(self.labels[i]), float(self.scores[i]))


class Strip:
    """A row a person, time from left to right: stretches of an action in the person's colour with the action's
    name, a thin line where the person does nothing that has a name, and a cursor at the present.

    It shows `page` frames at a time. At most `rows` people have a row: those who are there longest where the
    page is known beforehand (`turn` with tracks), else those who come first; how many more there are is told.
    """

    def __init__(self, width: int, rows: int, labels: Sequence[str], fps: float, page: int, size: int) -> None:
        self.labels, self.fps, self.page, self.size = labels, fps, page, size
        self.width, self.left = width, text_size("0000", size)[0] + 4
        self.line = text_size("0", size)[1]
        self.step = self.line + 4
        self.top = 3
        self.height = self.top + rows * self.step + self.line + 3
        self.cells = np.empty((rows, page), np.int64)
        self.turn(0)

    def turn(self, start: int, tracks: Sequence[PersonTrack] = ()) -> None:
        """Begin the page of frames `start` to before `start + page` with what the tracks say of it."""
        self.start, self.ids, self.hidden = start, [], set()
        self._picture: np.ndarray | None = None
        self.cells[:] = ABSENT
        spans = [(track, *np.searchsorted(track.frames, (start, start + self.page)).tolist()) for track in tracks]
        longest = sorted((span for span in spans if span[2] > span[1]), key=lambda span: span[1] - span[2])
        shown = sorted(longest[: len(self.cells)], key=lambda span: (span[0].frames[span[1]], span[0].person_id))
        for track, first, end in shown:
            row = self._row(track.person_id)
            self.cells[row, track.frames[first:end] - start] = self._known(track.labels[first:end])
        self.hidden = {track.person_id for track, _, _ in longest[len(self.cells) :]}

    def mark(self, frame: int, people: Sequence[Person]) -> None:
        """Enter the people of a frame of this page."""
        for person in people:
            row, label = self._row(person.person_id), self._known(np.array(person.label))
            if row is not None and self.cells[row, frame - self.start] != label:
                self.cells[row, frame - self.start] = label
                self._picture = None

    def image(self, frame: int) -> np.ndarray:
        """The strip with its cursor at `frame` of this page, uint8 RGB (height, width, 3)."""
        if self._picture is None:
            self._picture, self._pale = self._draw(0.0), self._draw(PALE)
        now = (self._column(frame) + self._column(frame + 1)) // 2
        image = np.hstack([self._picture[:, :now], self._pale[:, now:]])
        fill(image, now - 1, self.top - 2, now + 1, self.height - self.line - 3, WHITE)
        return image

    def _known(self, labels: np.ndarray) -> np.ndarray:
        return np.where((labels >= 0) & (labels < len(self.labels)), labels, IDLE)

    def _row(self, person_id: int) -> int | None:
        if person_id not in self.ids:
            if len(self.ids) == len(self.cells):
                if person_id not in self.hidden:
                    self.hidden.add(person_id)
                    self._picture = None
                return None
            self.ids.append(person_id)
        return self.ids.index(person_id)

    def _column(self, frame: int) -> int:
        """The x at which a frame of the page begins."""
        return self.left + round((frame - self.start) * (self.width - self.left - 3) / self.page)

    def _draw(self, pale: float) -> np.ndarray:
        image = np.empty((self.height, self.width, 3), np.uint8)
        image[:] = GROUND
        for row, person_id in enumerate(self.ids):
            y, colour = self.top + row * self.step, colour_of(person_id)
            name = str(person_id)
            fill(image, 2, y, self.left - 3, y + self.step - 2, colour)
            x = max((self.left - 1 - text_size(name, self.size)[0]) // 2, 2)
            put_text(image[:, : self.left - 3], name, (x, y + 1), self.size, ink_on(colour))
            fill(image, self._column(self.start), y, self._column(self.start + self.page), y + self.step - 2, TRACK)
            colour = tuple(int(c + pale * (g - c)) for c, g in zip(colour, GROUND, strict=True))
            edges = np.flatnonzero(np.diff(self.cells[row])) + 1
            for first, end in zip([0, *edges.tolist()], [*edges.tolist(), self.page], strict=True):
                x0, x1 = self._column(self.start + first), self._column(self.start + end)
                self._stretch(image, (x0, y, x1, y + self.step - 2), int(self.cells[row, first]), colour)
        self._axis(image)
        return image

    def _stretch(self, image: np.ndarray, place: tuple[int, int, int, int], label: int, colour: Colour) -> None:
        x0, y0, x1, y1 = place
        if label == IDLE:
            middle, half = (y0 + y1) // 2, max(1, self.size // 10)
            fill(image, x0, middle - half, max(x1, x0 + 1), middle + half, colour)
        elif label != ABSENT:
            fill(image, x0, y0, max(x1 - 1, x0 + 1), y1, colour)
            name = self.labels[label]
            while name and text_size(name, self.size)[0] > x1 - x0 - 4:
                name = name[:-1].rstrip()
            if len(name) >= min(3, len(self.labels[label])):
                put_text(image, name, (x0 + 3, y0 + 1), self.size, ink_on(colour))

    def _axis(self, image: np.ndarray) -> None:
        y, more = self.height - self.line - 1, f"+{len(self.hidden)} more"
        end = self.width - 2
        if self.hidden:
            end -= text_size(more, self.size)[0]
            put_text(image, more, (end, y), self.size, WHITE)
            end -= self.size
        shown = self.page / self.fps
        room = max((self.width - self.left) // (5 * self.size), 1)
        step = next((s for s in STEPS if shown / s <= room), shown)
        first = self.start / self.fps
        for k in range(math.ceil(first / step - 1e-9), int((first + shown) / step) + 1):
            x, name = self._column(round(k * step * self.fps)), f"{k * step:g} s"
            if x + text_size(name, self.size)[0] < end:
                fill(image, x, y - 2, x + 1, y + 1, GREY)
                put_text(image, name, (x, y), self.size, GREY)
