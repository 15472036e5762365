"""Action tubes of any video, with the checkpoints alone: an annotated video, a JSON of tubes, a summary line.

    python predict.py video.mp4 --detr detr.pth --encoder encoder.pth --head head.pth --out predictions

Decoding, detection with linking, and drawing with encoding run side by side, each a few batches ahead of the next.
The video is drawn while the input is still read: each block of `BLOCK` frames is classified from the tracks as linked
so far, from `WINDOW` frames before the block to at least `BLOCK` frames after it (fewer at the end). The JSON is
classified from the finished tracks, so its actions, and with a linker that joins tracks its person ids, may differ.
"""

import os
import sys
import time
from argparse import Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.sampling import Sampling
from models.head_types import add_action_flags
from models.linkers import LINKERS
from utils.cli import Parser, cosine, positive, positive_int, run, share
from utils.flags import add_detector_flags, add_frame_flags, add_report_flags, add_run_flags
from utils.misc import InputError, counted, exceeding, pick_device, progress, start

if TYPE_CHECKING:
    import torch

    from datasets.dataset import VideoFrames
    from utils.box_ops import Track
    from utils.drawing.timeline import Person
    from utils.drawing.video_writer import TubeVideoWriter

ACTION_TH = 0.5  # of heads whose frames may have several actions
BLOCK = 64  # frames that are drawn at a time
WINDOW = 512  # frames of context before a block
MIN_TUBE_LENGTH = 9  # of heads whose checkpoint does not say


def make_parser() -> Parser:
    parser = Parser("Find people in videos, follow them, and classify their actions.")
    parser.add_argument("videos", nargs="+", help="video files, or folders of images")
    add_detector_flags(parser, detr=None)
    parser.flag("models", "encoder", required=True, help="checkpoint of train_qmm.py, or synthetic (shipped)")
    parser.flag("models", "head", required=True, help="checkpoint of train_action_head.py, or synthetic (shipped)")
    parser.flag("models", "checkpoint_root", default="checkpoint", help="folder of downloaded weights")
    add_frame_flags(parser)
    of_head = "(default: as the head was trained)"
    parser.flag("models", "rate", type=positive,
                help=f"frames a second that are used, by presentation time {of_head}")  # fmt: skip
    parser.flag("linking", "linker", choices=tuple(LINKERS),
                help="rule of linking (default: robust with shipped weights; else the head's)")  # fmt: skip
    parser.flag("linking", "psn_score_th", type=share, help=f"minimum person score of a detection {of_head}")
    parser.flag("linking", "sim_th", type=cosine,
                help=f"minimum similarity of a link: cosine, or IoU {of_head}")  # fmt: skip
    parser.flag("linking", "filter_length", type=positive_int, help=f"minimum detections of a track {of_head}")
    parser.flag("linking", "end_consecutive_frames", type=positive_int,
                help=f"frames without a link after which a track ends {of_head}")  # fmt: skip
    add_action_flags(parser)
    parser.flag("action tubes", "min_tube_length", type=positive_int,
                help=f"minimum frames of an action tube {of_head}")  # fmt: skip
    parser.flag("output", "out", default="predictions", help="folder for <video>.mp4 and <video>.json")
    parser.flag("output", "export", choices=("cvat",),
                help="write <video>.xml too, tracks for an annotation tool, in which people correct them")  # fmt: skip
    parser.flag("output", "no_video", action="store_true", help="write the JSON alone")
    add_report_flags(parser)
    add_run_flags(parser)
    return parser


@dataclass(frozen=True)
class Settings:
    """How people are linked and action tubes are formed: by the flags, else as the head was trained."""

    linker: str
    psn_score_th: float
    sim_th: float
    filter_length: int
    end_consecutive_frames: int
    topk: int
    action_th: float | None
    min_tube_length: int


class Models:
    """Detector, person encoder and action head, with their settings."""

    def __init__(self, args: Namespace, device: "torch.device") -> None:
        from models.action_head import load_head
        from models.frame_features import frame_extractor
        from models.person_encoder import load_encoder
        from models.person_queries import detector_of
        from models.weights import shipped_names, weights_hash

        self.head, config, _ = load_head(args.head, device)
        self.encoder, encoder_config, _ = load_encoder(args.encoder, device)
        trained = config["settings"]
        if trained["encoder"] != weights_hash(self.encoder.state_dict()):
            raise InputError(f"{args.head}: was trained on tracks of another person encoder than {args.encoder}")
        self.detector = detector_of(args, device, encoder_config["detector"])
        self.labels, self.link_cues = config["labels"], trained["link_cues"]
        self.sampling = Sampling(args.rate) if args.rate else Sampling(**trained.get("sampling", {}))
        defaults = {"min_tube_length": config.get("min_tube_length", MIN_TUBE_LENGTH), "linker": "published", **trained}
        several = self.head.config["multi_label"]
        defaults |= {"topk": 1, "action_th": ACTION_TH if several and not args.topk else None}
        linker = args.linker or ("robust" if args.encoder in shipped_names() else None)
        if linker:
            patience = LINKERS[linker].end_consecutive_frames or trained["end_consecutive_frames"]
            defaults |= {"linker": linker, "end_consecutive_frames": patience}
        flags = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
        if trained.get("strict"):
            defaults |= {name: exceeding(defaults[name]) for name in ("psn_score_th", "sim_th")}
        self.settings = Settings(**{name: defaults[name] if flag is None else flag for name, flag in flags.items()})
        self.extractor = None
        if self.head.needs_frames:
            self.extractor = frame_extractor(self.head.needs_frames, args, device, encoder_config["detector"])
            if self.extractor.key != config["frames"]:
                raise InputError(f"{args.head}: was trained with features {config['frames']}, not {self.extractor.key}")


class VideoTracks:
    """The tracks of one video while it is read, and their actions."""

    def __init__(self, video: "VideoFrames", models: Models) -> None:
        from models.tube import Linker

        settings = models.settings
        self.video, self.models, self.settings = video, models, settings
        self.linker = Linker(
            settings.sim_th, settings.end_consecutive_frames, models.link_cues, LINKERS[settings.linker]
        )
        self.queries: list[np.ndarray] = []
        self.ids: dict[int, int] = {}
        self.n_frames = 0
        self.features = self._frame_features() if models.extractor else None

    def _frame_features(self) -> np.ndarray:
        """The features of all frames, float32 (n_frames, width), for a head that needs them: a pass of its own."""
        from datasets.frame_batches import Ahead, batches
        from models.frozen import run_ahead

        extractor = self.models.extractor
        pin = extractor.device.type == "cuda"
        with closing(Ahead(batches(self.video, extractor.image_size, extractor.batch_size, pin))) as images:
            return np.concatenate([fetch()[0] for _, fetch in run_ahead(extractor.start(images))])

    def extend(self, frames: Iterable[np.ndarray]) -> Iterator[int]:
        """Detect people in the video's `frames`, uint8 RGB (H, W, 3), and link them, batch by batch; yields how many
        frames a batch has."""
        from datasets.frame_batches import Ahead, batches
        from models.frozen import run_ahead
        from models.person_encoder import encode

        detector = self.models.detector
        pin = detector.device.type == "cuda"
        with closing(Ahead(batches(frames, detector.frame_size, detector.batch_size, pin))) as images:
            started = detector.start(images, self.video.size, self.settings.psn_score_th)
            for n_frames, fetch in run_ahead(started):
                detections = fetch()
                features = encode(self.models.encoder, detections.queries) if self.linker.cue.needs_features else None
                self.linker.extend(detections.frames, detections.boxes, detections.scores, features)
                self.queries.extend(detections.queries)
                for track in sorted(self.linker.tracks_since(self.n_frames), key=lambda track: track.person_id):
                    if len(track) >= self.settings.filter_length:  # numbered here, whether anything is drawn or not
                        self.person_id(track)
                self.n_frames += n_frames
                yield n_frames

    def probabilities(self, track: "Track", first: int = 0) -> tuple[np.ndarray, slice]:
        """Class probabilities of a track's frames from `first` on, and which of its rows these are."""
        from models.action_head import action_probabilities

        rows = slice(int(np.searchsorted(track.frames, first)), None)
        frames = track.frames[rows]
        queries = np.stack([self.queries[row] for row in track.rows[rows]])
        features = None if self.features is None else self.features[frames]
        times = frames - track.frames[0]
        return action_probabilities(self.models.head, queries, times, features, rows.start), rows

    def person_id(self, track: "Track") -> int:
        """The person's number, from 0 in the order in which tracks become long enough."""
        return self.ids.setdefault(track.person_id, len(self.ids))

    def people(self, first: int, last: int) -> dict[int, list["Person"]]:
        """The people of each frame from `first` to before `last`, with their actions, as they are linked so far."""
        from models.tube import carried_actions
        from utils.drawing.timeline import Person

        people: dict[int, list[Person]] = defaultdict(list)
        for track in self.linker.tracks_since(first):
            if len(track) < self.settings.filter_length or track.frames[0] >= last:
                continue
            probabilities, rows = self.probabilities(track, first - WINDOW)
            number, none = self.person_id(track), probabilities.shape[1] - 1
            carries = carried_actions(probabilities, self.settings.topk, self.settings.action_th)
            columns = track.frames[rows].tolist(), track.boxes[rows], probabilities, carries
            for frame, box, scores, carried in zip(*columns, strict=True):
                if first <= frame < last:
                    actions = sorted(np.flatnonzero(carried).tolist(), key=lambda label: -scores[label])
                    label, *others = [(label, float(scores[label])) for label in actions or [none]]
                    people[frame].append(Person(number, box, *label, tuple(others)))
        return people

    def finish(self) -> dict:
        """Tracks (`people`) and action tubes (`tubes`) of the whole video, as the JSON has them: joined where the
        linker joins finished tracks, under the number of their first piece."""
        from models.tube import action_tubes

        people, tubes = [], []
        for track in self.linker.finish():
            if len(track) < self.settings.filter_length:
                continue
            number = self.person_id(track)
            people.append({"person_id": number, **_columns(track.frames, track.boxes, track.scores)})
            probabilities, _ = self.probabilities(track)
            s = self.settings
            for tube, scores in action_tubes(
                track.frames, track.boxes, probabilities, s.topk, s.min_tube_length, number, s.action_th
            ):
                entry = {"label": self.models.labels[tube.label], "score": round(tube.score, 4), "person_id": number}
                tubes.append({**entry, **_columns(tube.frames, tube.boxes, scores)})
        return {"tubes": sorted(tubes, key=lambda tube: -tube["score"]), "people": people}


def _columns(frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> dict[str, list]:
    boxes, scores = boxes.astype(float).round(2), scores.astype(float).round(4)
    return {"frames": frames.tolist(), "boxes": boxes.tolist(), "scores": scores.tolist()}


class Drawing:
    """Draws and encodes the annotated video in a thread of its own, a block of frames while the next is detected."""

    def __init__(self, writer: "TubeVideoWriter", tracks: VideoTracks) -> None:
        self.writer, self.tracks = writer, tracks
        self.images: deque[np.ndarray] = deque()  # of the frames that are not drawn yet
        self.drawn = 0
        self._thread = ThreadPoolExecutor(1, "drawing")
        self._block = self._thread.submit(int)

    def keep(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same frames, each kept for drawing in the video's size."""
        from utils.drawing.video_writer import resize_image

        for frame in frames:
            self.images.append(resize_image(frame))
            yield frame

    def draw(self, last: int) -> None:
        """Start to draw the frames before `last`, once those before them are drawn."""
        people = self.tracks.people(self.drawn, last)
        self._block.result()
        images = [self.images.popleft() for _ in range(self.drawn, last)]
        self._block = self._thread.submit(self._write, images, [people[number] for number in range(self.drawn, last)])
        self.drawn = last

    def _write(self, images: list[np.ndarray], people: list[list["Person"]]) -> None:
        for image, shown in zip(images, people, strict=True):
            self.writer.write(image, shown)

    def close(self) -> None:
        """Wait until all is drawn."""
        with self._thread:
            self._block.result()


def predict(
    path: Path, out: Path, models: Models, with_video: bool = True, export: str | None = None
) -> tuple[str, dict]:
    """Write `out/<name>.json`, `with_video` `out/<name>.mp4`, and for the annotation tool `export` its file.

    Returns:
        A summary line; what the JSON holds.

    Raises:
        InputError: the video cannot be used.
    """
    from datasets.dataset import VideoFrames
    from datasets.formats.cvat_writer import write_predicted
    from utils.drawing.video_writer import TubeVideoWriter
    from utils.storage.files import write_json

    began = time.monotonic()
    video = VideoFrames(path, models.sampling)
    tracks = VideoTracks(video, models)
    targets = [out / f"{output_name(path)}.json"]
    with ExitStack() as stack:
        total = video.announced or None
        bar = stack.enter_context(progress(desc=path.name, total=total, unit="frame", leave=False, delay=1))
        drawing, frames = None, video
        if with_video:
            targets.insert(0, out / f"{output_name(path)}.mp4")
            writer = TubeVideoWriter(targets[0], video.size, video.fps, models.labels, video.announced)
            drawing = Drawing(stack.enter_context(writer), tracks)
            stack.callback(drawing.close)
            frames = drawing.keep(video)
        for n_frames in tracks.extend(frames):
            while drawing and tracks.n_frames - drawing.drawn >= 2 * BLOCK:
                drawing.draw(drawing.drawn + BLOCK)
            bar.set_postfix_str(f"people {len(tracks.ids)}", refresh=False)
            bar.update(n_frames)
        if drawing:
            drawing.draw(tracks.n_frames)
        result = tracks.finish()
    about = {"video": str(path), "width": video.size[0], "height": video.size[1], "fps": video.fps}
    about |= {"n_frames": tracks.n_frames, "labels": models.labels, "settings": asdict(models.settings)}
    write_json(targets[-1], about | result)
    if export:
        targets.append(out / f"{output_name(path)}.xml")
        own_frames = None if models.sampling.all_frames else video.chosen()
        write_predicted(about | result, targets[-1], own_frames)
    labels = Counter(tube["label"] for tube in result["tubes"])
    counts = ", ".join(f"{label} {n}" for label, n in labels.most_common()) or "none"
    speed = tracks.n_frames / (time.monotonic() - began)
    written = ", ".join(map(str, targets))
    people = len(result["people"])
    summary = f"{path}: {tracks.n_frames} frames, {people} people, action tubes: {counts}; {speed:.0f} frames/s"
    return f"{summary} -> {written}", about | result


def report(results: Sequence[dict], out: Path, models: Models, n_videos: int, threads: int) -> Path:
    """Write the page of `--report`; `results` as in the videos' JSON. Returns its path."""
    from datasets.dataset import VideoFrames
    from utils.drawing.report.contents import predicted_page
    from utils.drawing.report.page import write_report

    by_name = {output_name(Path(result["video"])): result for result in results}
    page = predicted_page(by_name, asdict(models.settings))
    frames = lambda name: VideoFrames(by_name[name]["video"], models.sampling)  # noqa: E731
    return write_report(out / "report", page, frames, n_videos, threads)


def output_name(path: Path) -> str:
    """The name of a video's results: of a file without its suffix, of a folder the whole name."""
    return path.resolve().name if path.is_dir() else path.stem


def check_paths(paths: Sequence[Path], out: Path) -> None:
    """InputError for a path without a file or folder, for two of one name, and where a video would be written over."""
    sources: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such video file or folder of images")
        name = output_name(path)
        if name in sources:
            raise InputError(
                f"{path} and {sources[name]} would both be written to {out / name}.json; predict them apart, each with "
                "an --out of its own"
            )
        sources[name] = path
        target = out / f"{name}.mp4"
        if target.exists() and target.samefile(path):
            raise InputError(f"{path}: the annotated video would be written over it; name another folder with --out")


def main() -> None:
    """The command line."""
    args = make_parser().parse_args()
    paths, out = [Path(video) for video in args.videos], Path(args.out)
    check_paths(paths, out)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores from decoding and drawing
    start(args)
    models = Models(args, pick_device(args.device))
    if args.export:
        from datasets.formats.common import refuse_names_of_nothing

        refuse_names_of_nothing(models.labels)
    results, failed = [], []
    for path in paths:
        try:
            summary, result = predict(path, out, models, not args.no_video, args.export)
            print(summary)
            if args.report:
                results.append(result)
        except InputError as error:
            if len(paths) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed.append(str(path))
    if results:
        print(f"report: {report(results, out, models, args.report_videos, args.workers)}")
    if failed:
        raise InputError(f"{counted(len(failed), 'video')} of {len(paths)} could not be used: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
