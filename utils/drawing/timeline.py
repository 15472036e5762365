"""People over time: who does what in each frame, and the strip that shows it under a video."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from utils.drawing.draw import WHITE, Colour, colour_of, fill, ink_on, put_text, text_size

ABSENT, IDLE = -2, -1  # in the strip's cells: not there, there without an action
BACKGROUND, EMPTY_ROW, GREY = (22, 22, 22), (44, 44, 44), (170, 170, 170)
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)  # seconds between the axis' numbers


class Person(NamedTuple):
    """Somebody in one frame: `box` xyxy in pixels of the original frame; `label` an action, or any number that is
    no label's index (-1, n_classes) for none; `score` of that action in this frame; `others`, further actions with
    their scores."""

    person_id: int
    box: np.ndarray
    label: int
    score: float
    others: tuple[tuple[int, float], ...] = ()


class Strip:
    """A row per person, time from left to right: stretches of an action in the person's colour with the action's name,
    a thin line where the person does nothing that has a name, and a cursor at the present frame.

    Args:
        width: pixels.
        rows: people with a row, those who come first in a page; how many others there are is written below.
        page: frames that it shows at a time.
        size: the text's height in pixels.
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

    def turn(self, start: int) -> None:
        """Begin an empty page of the frames from `start` to before `start + page`."""
        self.start, self.rows, self.hidden = start, {}, set()  # row by person; people without one
        self.cells[:] = ABSENT
        self._drawn = np.full((self.height, self.width, 3), BACKGROUND, np.uint8)
        self._axis()

    def mark(self, frame: int, people: Sequence[Person]) -> None:
        """Enter the people of a frame of this page."""
        before = len(self.hidden)
        for person in people:
            if person.person_id not in self.rows and len(self.rows) == len(self.cells):
                self.hidden.add(person.person_id)
                continue
            row = self.rows.setdefault(person.person_id, len(self.rows))
            self.cells[row, frame - self.start] = person.label if 0 <= person.label < len(self.labels) else IDLE
            self._draw_row(person.person_id)
        if len(self.hidden) > before:
            self._axis()

    def image(self, frame: int) -> np.ndarray:
        """The strip with its cursor at `frame` of this page, uint8 RGB (height, width, 3)."""
        image = self._drawn.copy()
        cursor = (self._column(frame) + self._column(frame + 1)) // 2
        fill(image, cursor - 1, self.top - 2, cursor + 1, self.height - self.line - 3, WHITE)
        return image

    def _column(self, frame: int) -> int:
        """The x at which a frame of the page begins."""
        return self.left + round((frame - self.start) * (self.width - self.left - 3) / self.page)

    def _draw_row(self, person_id: int) -> None:
        row, name, colour = self.rows[person_id], str(person_id), colour_of(person_id)
        y = self.top + row * self.step
        fill(self._drawn, 2, y, self.left - 3, y + self.step - 2, colour)
        x = max((self.left - 1 - text_size(name, self.size)[0]) // 2, 2)
        put_text(self._drawn[:, : self.left - 3], name, (x, y + 1), self.size, ink_on(colour))
        fill(self._drawn, self.left, y, self._column(self.start + self.page), y + self.step - 2, EMPTY_ROW)
        cells = self.cells[row]
        edges = (np.flatnonzero(cells[1:] != cells[:-1]) + 1).tolist()
        for first, end in pairwise([0, *edges, self.page]):
            x0, x1 = self._column(self.start + first), self._column(self.start + end)
            self._stretch((x0, y, x1, y + self.step - 2), int(cells[first]), colour)

    def _stretch(self, field: tuple[int, int, int, int], label: int, colour: Colour) -> None:
        image, (x0, y0, x1, y1) = self._drawn, field
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

    def _axis(self) -> None:
        y, more = self.height - self.line - 1, f"+{len(self.hidden)} more"
        image, end = self._drawn, self.width - 2
        fill(image, 0, y - 2, self.width, self.height, BACKGROUND)
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
