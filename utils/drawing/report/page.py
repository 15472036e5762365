"""A page that shows metrics, and videos with ground truth and predictions; it opens from the disk in any browser.

`index.html` holds the code and what the list needs; a folder beside it two scripts for each video, its tubes and the
video itself, which the page loads when the video is looked at. The folder has a new name in each report, and
`index.html` is replaced at once, so that a stopped run leaves the old report or the new one.
"""

import base64
import html
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from utils.drawing.draw import PALETTE
from utils.drawing.video_encoder import browser_suffix, encoded_rate, fit_image, new_video
from utils.misc import InputError, counted, progress, tell
from utils.storage.files import sync, write_text

GENERATOR = "query matching report"
SCRIPTS = ("dom.js", "charts.js", "boxes.js", "player.js", "timeline.js", "page.js")
LONGEST_SIDE = 1280  # pixels of a video: what a laptop plays
LARGEST_SCRIPT = 2**25  # bytes of a video that comes in a script, see player.js; a longer one is a file
FILES = "files-"  # the folder's name begins with it

Frames = Callable[[str], Iterable[np.ndarray]]


def write_report(
    folder: str | Path, report: Mapping, frames_of: Frames | None = None, n_videos: int = 0, threads: int = 1
) -> Path:
    """Write the page into `folder`, over an earlier one.

    Args:
        folder: made where it is missing; one with another `index.html` is refused.
        report: plain values (JSON) under these keys:
            `title` and `facts` (name -> text), above the page;
            `labels`: the classes' names;
            `metrics`: `{"name", "value"[, "count", "low", "high"]}`, where `count` says that it is a whole number;
            `charts`: `{"kind", "title"[, "folded"]}` with, by its kind, `rows` (bars: `{"name", "value"[, "low",
            "high", "series", "note"]}`), `curves` (`{"name", "note", "x", "y"}`) and the axes' names `x` and `y`, or
            `rows`, `columns` and `counts` (a matrix);
            `columns`: the counts that the list of videos shows, its order is by the first, falling;
            `videos`: `{"name", "width", "height", "fps", "n_frames", "counts", "gt", "pred", "events"}`, where `gt` and
            `pred` are `{"person", "name", "colour", "label", "score", "frames", "boxes"[, "error"]}` and `events`
            `{"frame", "text"}`; an unknown `fps` is None.
        frames_of: video's name -> its frames in order, uint8 RGB (H, W, 3), with their rate as `fps` unless the
            video's is given; None: the page has no videos.
        n_videos: how many videos, in the list's order, are written; 0: all.
        threads: videos written at a time.

    Returns:
        The path of `index.html`.

    Raises:
        InputError: `folder` holds a page that is no report.
        OSError: the disk is full.
    """
    folder = Path(folder)
    index = folder / "index.html"
    if index.exists() and GENERATOR not in index.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise InputError(f"{index}: is no report of this project; name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{FILES}{uuid.uuid4().hex[:8]}"
    files.mkdir()
    try:
        sources = _write_videos(files, report, frames_of, n_videos, threads)
        videos = []
        for i, (video, source) in enumerate(zip(report["videos"], sources, strict=True)):
            data = files / f"{i:05d}.js"
            tubes = {side: [_compact(tube) for tube in video[side]] for side in ("gt", "pred")}
            data.write_text(f"loaded({i}, {safe_json(tubes | {'events': video['events']})});\n")
            sync(data)
            kept = {key: value for key, value in video.items() if key not in ("gt", "pred", "events")}
            videos.append({**kept, "src": None, **source, "data": f"{files.name}/{data.name}"})
        data = {**report, "videos": videos, "judged": any(video["gt"] or video["events"] for video in report["videos"])}
        data["palette"] = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE]
        write_text(index, _page(data))
    except BaseException:
        shutil.rmtree(files)
        raise
    for old in folder.glob(FILES + 8 * "[0-9a-f]"):
        if old != files:
            shutil.rmtree(old)
    return index


def safe_json(value: object) -> str:
    """`value` as ASCII JSON that is safe within an HTML script element and as JavaScript: no `<`, so no `</script>`."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _page(data: Mapping) -> str:
    """The text of `index.html`."""
    here = Path(__file__).parent
    texts = {name: (here / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", *SCRIPTS)}
    title = html.escape(data["title"], quote=False).encode("ascii", "xmlcharrefreplace").decode()
    parts = {"generator": GENERATOR, "title": title, "style": texts["style.css"], "data": safe_json(data)}
    parts["script"] = "\n".join(texts[name] for name in SCRIPTS)
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], texts["page.html"])


def _compact(tube: Mapping) -> dict:
    """A tube as its video's script holds it: runs of frames (first, number), and boxes in one list, to 0.1 pixel."""
    frames = np.asarray(tube["frames"], np.int64)
    begins = np.flatnonzero(np.diff(frames, prepend=frames[:1] - 2) > 1)
    runs = np.stack([frames[begins], np.diff(begins, append=len(frames))], 1)
    boxes = np.nan_to_num(np.asarray(tube["boxes"], np.float64)).round(1).ravel()
    kept = {key: value for key, value in tube.items() if key not in ("frames", "boxes")}
    return {**kept, "runs": runs.tolist(), "boxes": [int(v) if v == int(v) else v for v in boxes.tolist()]}


def _write_videos(files: Path, report: Mapping, frames_of: Frames | None, n_videos: int, threads: int) -> list[dict]:
    """What is known of each video, empty for one that is not written: `src`, its file, relative to the page; its `fps`,
    `n_frames` and, where its frames say it, `width` and `height`."""
    videos, column, suffix = report["videos"], report["columns"][0], browser_suffix()
    order = sorted(range(len(videos)), key=lambda i: -videos[i]["counts"].get(column, 0))
    chosen = order[: n_videos or None] if frames_of else []
    unreadable: list[InputError] = []

    def write(i: int) -> dict:
        path = files / f"{i:05d}{suffix}"
        try:
            frames = frames_of(videos[i]["name"])
            fps = getattr(frames, "fps", videos[i]["fps"])
            n_frames = _encode(path, frames, fps)
        except InputError as error:  # the page shows the boxes alone
            unreadable.append(error)
            return {}
        if path.stat().st_size <= LARGEST_SCRIPT:
            text = base64.b64encode(path.read_bytes()).decode()
            path.unlink()
            path = path.with_name(f"{i:05d}.video.js")
            path.write_text(f'loadedVideo({i}, "data:video/{suffix[1:]};base64,{text}");\n')
            sync(path)
        about = {"src": f"{files.name}/{path.name}", "fps": float(encoded_rate(fps))}
        about["n_frames"] = max(n_frames, videos[i]["n_frames"])
        return about | dict(zip(("width", "height"), getattr(frames, "size", ()), strict=False))

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        results = progress(
            pool.map(write, chosen), desc="videos of the page", total=len(chosen), unit="video", leave=False
        )
        written = dict(zip(chosen, results, strict=True))
    if unreadable:
        tell(f"note: {counted(len(unreadable), 'video')} of the page cannot be read, the first: {unreadable[0]}")
    return [written.get(i, {}) for i in range(len(videos))]


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Encode every frame in its place, with a key frame in every half second; returns their number."""
    images = (np.ascontiguousarray(fit_image(frame, LONGEST_SIDE)) for frame in frames)
    first = next(images)
    n_frames = 0
    with new_video(path, first.shape[1::-1], fps, max(round(fps / 2), 1)) as encode:
        for image in chain([first], images):
            encode(image)
            n_frames += 1
    return n_frames
