"""Drawing on frames, without a window system: text, boxes with captions, and colours that everybody can tell apart.

Images are uint8 RGB (H, W, 3) and are drawn on in place.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from PIL import ImageFont

Colour = tuple[int, int, int]
# Okabe and Ito's palette, which stays apart under every kind of colour blindness; black is left for lines and text
PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # green
    (204, 121, 167),  # purple
    (240, 228, 66),  # yellow
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
)
# DejaVu Sans comes with Matplotlib, whose import takes long
DEJAVU_FILE = str(Path(find_spec("matplotlib").submodule_search_locations[0], "mpl-data/fonts/ttf/DejaVuSans.ttf"))
# where DejaVu Sans lacks a label's characters
CJK_FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "Hiragino Sans", "Yu Gothic", "Meiryo")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def colour_of(number: int) -> Colour:
    """The colour of a person; those of number and number + 7 are the same."""
    return PALETTE[number % len(PALETTE)]


@lru_cache
def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour` (luma of Rec. 601)."""
    return BLACK if np.dot(colour, (0.299, 0.587, 0.114)) > 95 else WHITE


@lru_cache
def font_families() -> tuple[str, ...]:
    """DejaVu Sans, and the installed fonts of `CJK_FONTS`."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in CJK_FONTS if name in installed))


@lru_cache
def _font_file(text: str) -> str:
    """The first font that has all characters of `text`, else DejaVu Sans."""
    if text.isascii():
        return DEJAVU_FILE
    from matplotlib import font_manager, ft2font

    files = [DEJAVU_FILE, *(font_manager.findfont(name) for name in font_families()[1:])]
    for file in files:
        face = ft2font.FT2Font(file)
        if all(face.get_char_index(ord(character)) for character in text):
            return file
    return DEJAVU_FILE


@lru_cache
def _font(file: str, size: int) -> "ImageFont.FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.truetype(file, size)


@lru_cache(maxsize=2048)
def _text_mask(text: str, size: int) -> np.ndarray:
    """Coverage of a line of text, float32 (h, w, 1) from 0 to 1; h is the same for every text of a size."""
    from PIL import Image, ImageDraw

    font = _font(_font_file(text), size)
    ascent, descent = font.getmetrics()
    page = Image.new("L", (max(int(np.ceil(font.getlength(text))), 1), ascent + descent))
    ImageDraw.Draw(page).text((0, 0), text, 255, font)
    return np.asarray(page, np.float32)[..., None] / 255


def text_size(text: str, size: int) -> tuple[int, int]:
    """Width and height in pixels of a line of text `size` pixels high."""
    height, width, _ = _text_mask(text, size).shape
    return width, height


def put_text(image: np.ndarray, text: str, corner: tuple[int, int], size: int, colour: Colour) -> None:
    """Draw a line of text with its left upper corner at (x, y); what lies outside the image is cut off."""
    (x, y), (w, h) = corner, text_size(text, size)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, image.shape[1]), min(y + h, image.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    mask, under = _text_mask(text, size)[y0 - y : y1 - y, x0 - x : x1 - x], image[y0:y1, x0:x1]
    under[:] = under + mask * (np.float32(colour) - under) + 0.5


def fill(image: np.ndarray, x0: int, y0: int, x1: int, y1: int, colour: Colour) -> None:
    """Paint the pixels from (x0, y0) to before (x1, y1); what lies outside the image is cut off."""
    if x0 < x1 and y0 < y1:
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), colour, cv2.FILLED)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    colours: Sequence[Colour],
    captions: Sequence[str],
    size: int,
    dashed: Sequence[bool] | None = None,
) -> None:
    """Outline boxes (n, 4) xyxy in pixels of the image, each with its caption in a field of its colour.

    `size` is the text's height in pixels; lines follow it. People whose feet are nearer come to lie above
    those behind, dashed boxes above all. Captions stand above solid and below dashed boxes, elsewhere where
    they would cover another one or leave the image. Boxes wholly outside are left out, others are cut at the
    image's edge.
    """
    height, width = image.shape[:2]
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    dashed = [False] * len(boxes) if dashed is None else dashed
    thick = max(2, round(size / 6))
    visible = (boxes[:, 2:] > 0).all(1) & (boxes[:, :2] < (width, height)).all(1)
    order = [int(i) for i in np.lexsort((boxes[:, 3], dashed)) if visible[i]]
    corners = np.clip(boxes, 0, [width - 1, height - 1] * 2).round().astype(int).tolist()
    for i in order:
        outline = _dashes(corners[i], 5 * thick) if dashed[i] else [_corners(corners[i])]
        for colour, wide in ((BLACK, thick + 2), (colours[i], thick)):
            cv2.polylines(image, outline, not dashed[i], colour, wide)
    taken: list[tuple[int, int, int, int]] = []
    for i in sorted(order, key=lambda i: (dashed[i], -boxes[i, 3])):  # the nearest people choose first
        if captions[i]:
            field = _caption_field(corners[i], text_size(captions[i], size), (width, height), thick, dashed[i], taken)
            taken.append(field)
            fill(image, *field, colours[i])
            put_text(image, captions[i], (field[0] + thick, field[1]), size, ink_on(colours[i]))


def _corners(box: list[int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _dashes(box: list[int], length: int) -> list[np.ndarray]:
    """The lines of a dashed outline, int (2, 2) each."""
    lines = []
    for a, b in pairwise([*_corners(box), _corners(box)[0]]):
        n = max(round(np.abs(b - a).sum() / length / 2), 1)
        begins = np.arange(n)[:, None] / n
        ends = begins + 0.5 / n
        lines += list(np.stack([a + begins * (b - a), a + ends * (b - a)], 1).round().astype(int))
    return lines


def _caption_field(
    box: list[int],
    text: tuple[int, int],
    image: tuple[int, int],
    thick: int,
    below: bool,
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Where a caption goes, xyxy: above its box, below or within, first where it is in the image and covers none."""
    w, h = text[0] + 2 * thick, text[1]
    half = thick // 2
    left = max(min(box[0] - half, image[0] - w), 0)
    right = max(min(box[2] + half + 1 - w, image[0] - w), 0)
    outside, inside = (box[1] - half - h, box[3] + half + 1), (box[1] - half, box[3] + half + 1 - h)
    tops = [*outside[::-1], *inside[::-1]] if below else [*outside, *inside]
    fields = [(x, y, x + w, y + h) for y in tops for x in (left, right) if 0 <= y <= image[1] - h]
    for x0, y0, x1, y1 in fields:
        if not any(x0 < c and a < x1 and y0 < d and b < y1 for a, b, c, d in taken):
            return x0, y0, x1, y1
    return fields[0] if fields else (left, 0, left + w, h)
