"""Action tubes of any video, with the checkpoints alone: an annotated video, a JSON of tubes, a summary line.

    python predict.py video.mp4 --detr detr.pth --encoder encoder.pth --head head.pth --out predictions

Decoding, detection with linking, and drawing with encoding run side by side, each a few batches ahead of the next.
The video is drawn while the input is still read: each block of `BLOCK` frames is classified from the tracks as linked
so far, from `WINDOW` frames before the block to at least `BLOCK` frames after it (fewer at the end). The JSON is
classified from the finished tracks, so its actions, and with a linker that joins tracks its person ids, may differ.
"""

import os
import time
from argparse import Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from models.head_types import add_action_flags, check_topk
from models.linkers import LINKERS
from utils import flags
from utils.cli import Parser, cosine, positive_int, run, share

ACTION_TH = 0.5  # of heads whose frames may have several actions
BLOCK = 64  # frames that are drawn at a time
WINDOW = 512  # frames of context before a block

DETECTOR_USE = ("image_size", "square", "query_layer", "person_label")  # of `Detector.config`: as for the head's tracks


def make_parser() -> Parser:
    parser = Parser("Detect and track people in videos, and classify their actions.")
    parser.add_argument(
        "videos", nargs="+", help="video files, or folders of images (25 a second, or as the head was trained)"
    )
    flags.add_detector_flags(parser, detr=None)
    parser.flag(
        "models", "encoder", required=True, help="checkpoint of train_qmm.py, or synthetic (shipped; drawn people)"
    )
    parser.flag(
        "models", "head", required=True, help="checkpoint of train_action_head.py, or synthetic (shipped; drawn people)"
    )
    parser.flag("models", "checkpoint_root", default="checkpoint", help="folder of downloaded weights")
    flags.add_frame_flags(parser)
    as_trained = "(default: as the head was trained)"
    parser.flag("linking", "linker", choices=tuple(LINKERS), help=f"rule of linking {as_trained}")
    parser.flag("linking", "psn_score_th", type=share, help=f"minimum person score of a detection {as_trained}")
    parser.flag("linking", "sim_th", type=cosine, help=f"minimum similarity of a link: cosine, or IoU {as_trained}")
    parser.flag("linking", "filter_length", type=positive_int, help=f"minimum detections of a track {as_trained}")
    parser.flag("linking", "end_consecutive_frames", type=positive_int,
                help="frames without a link after which a track closes "
                "(default: as the head was trained; with another --linker that linker's)")  # fmt: skip
    add_action_flags(parser)
    help_text = f"minimum frames of an action tube {as_trained}"
    parser.flag("action tubes", "min_tube_length", type=positive_int, help=help_text)
    parser.flag("output", "out", default="predictions", help="folder for <video>.mp4 and <video>.json")
    help_text = "write <video>.xml too: the tracks for an annotation tool, to correct them there"
    parser.flag("output", "export", choices=("cvat",), help=help_text)
    parser.flag("output", "no_video", action="store_true", help="write the JSON alone")
    flags.add_report_flags(parser, "the videos with their action tubes", "action tubes")
    flags.add_run_flags(parser)
    return parser


if __name__ == "__main__":  # PyTorch takes seconds to import: --help and mistyped flags are answered before
    make_parser().parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores from decoding and drawing

import numpy as np
import torch

from datasets.config import DEFAULTS
from datasets.dataset import VideoFrames
from datasets.formats.common import refuse_names_of_nothing
from datasets.formats.cvat_writer import write_predicted
from datasets.frame_batches import Ahead, batches
from datasets.sampling import Sampling
from models.action_head import ActionHead, action_probabilities, load_head
from models.detectors import Detector
from models.frame_features import Extractor, frame_extractor
from models.frozen import run_ahead
from models.person_encoder import PersonEncoder, encode, load_encoder
from models.person_queries import detector_of
from models.tube import Linker, action_tubes, carried_actions
from models.weights import weights_hash
from utils.box_ops import Track
from utils.drawing.report.contents import predicted_page
from utils.drawing.report.page import write_report
from utils.drawing.timeline import Person
from utils.drawing.video_writer import annotated_video, resize_image
from utils.misc import InputError, counted, exceeding, pick_device, progress, start, tell
from utils.storage.files import shorten, write_json


class Models(NamedTuple):
    """Detector, person encoder and action head; `extractor` for heads that need frame features; `make_linker` gives a
    linker for one video; `settings` how people are linked and action tubes formed, named as their flags."""

    detector: Detector
    encoder: PersonEncoder
    head: ActionHead
    extractor: Extractor | None
    labels: list[str]
    make_linker: Callable[[], Linker]
    sampling: Sampling
    settings: Namespace


def load_models(args: Namespace, device: torch.device) -> Models:
    """The models that the flags name. InputError where head, encoder and detector were not trained together."""
    head, config, _ = load_head(args.head, device)
    check_topk(args.topk, config["labels"])
    encoder, encoder_config, _ = load_encoder(args.encoder, device)
    trained = config["settings"]
    if trained["encoder"] != weights_hash(encoder.state_dict()):
        text = f"was trained on tracks of another person encoder than {args.encoder}; take both from one run"
        raise InputError(f"{args.head}: {text}")
    tracks_detector = trained["detector"]
    used = encoder_config["detector"] | {name: tracks_detector[name] for name in DETECTOR_USE}
    detector = detector_of(args, device, used)
    if detector.key != tracks_detector["key"]:
        others = f"{tracks_detector['key']}, here {detector.key} (--amp, --image_size, --pad_square, --person_label)"
        tell(f"note: {args.head} was trained on tracks of a detector with other settings: {others}")
    kind, key = head.needs_frames, config["frames"]
    extractor = frame_extractor(kind, args, device, used, key) if kind else None
    sampling = Sampling(**trained.get("sampling", {}))
    settings = resolve_settings(args, config, head.config["multi_label"])
    options = settings.sim_th, settings.end_consecutive_frames, trained["link_cues"], LINKERS[settings.linker]
    Linker(*options)  # a mistake here stops the run before a video is opened
    return Models(detector, encoder, head, extractor, config["labels"], partial(Linker, *options), sampling, settings)


def resolve_settings(args: Namespace, head_config: dict, multi_label: bool) -> Namespace:
    """Settings by the flags, else as the head was trained, which `head_config`, its checkpoint's, says."""
    trained = head_config["settings"]
    linker, own = args.linker or trained["linker"], LINKERS[trained["linker"]].end_consecutive_frames
    patience = trained["end_consecutive_frames"]
    if linker != trained["linker"]:  # what was its linker's own is not the other's
        patience = DEFAULTS["end_consecutive_frames"] if patience == own else patience
        patience = LINKERS[linker].end_consecutive_frames or patience
    settings = {
        "linker": linker,
        "psn_score_th": trained["psn_score_th"],
        "sim_th": trained["sim_th"],
        "filter_length": trained["filter_length"],
        "end_consecutive_frames": patience,
        "topk": 1,
        "action_th": ACTION_TH if multi_label and not args.topk else None,
        "min_tube_length": head_config["min_tube_length"],
    }
    if trained["strict"]:
        settings |= {name: exceeding(settings[name]) for name in ("psn_score_th", "sim_th")}
    given = {name: value for name in settings if (value := getattr(args, name)) is not None}
    return Namespace(**settings | given)


class VideoTracks:
    """The tracks of one video while it is read, and their actions."""

    def __init__(self, video: VideoFrames, models: Models) -> None:
        self.video, self.models, self.settings = video, models, models.settings
        self.linker = models.make_linker()
        self.queries: list[np.ndarray] = []
        self.numbers: dict[int, int] = {}  # of the people, by their track's id
        self.n_frames = 0
        self.features = self._frame_features() if models.extractor else None

    def _frame_features(self) -> np.ndarray:
        """The features of all frames, float32 (n_frames, width), for a head that needs them: a pass of its own."""
        extractor = self.models.extractor
        pin = extractor.device.type == "cuda"
        with closing(Ahead(batches(self.video, extractor.image_size, extractor.batch_size, pin))) as images:
            return np.concatenate([fetch()[0] for _, fetch in run_ahead(extractor.start(images))])

    def extend(self, frames: Iterable[np.ndarray]) -> Iterator[int]:
        """Detect people in the video's `frames`, uint8 RGB (H, W, 3), and link them, batch by batch; yields how many
        frames a batch has."""
        detector = self.models.detector
        pin = detector.device.type == "cuda"
        with closing(Ahead(batches(frames, detector.frame_size, detector.batch_size, pin))) as images:
            started = detector.start(images, self.video.size, self.settings.psn_score_th)
            for n_frames, fetch in run_ahead(started):
                detections = fetch()
                features = encode(self.models.encoder, detections.queries) if self.linker.cue.needs_features else None
                self.linker.extend(detections.frames, detections.boxes, detections.scores, features)
                self.queries.extend(detections.queries)
                full = self.settings.filter_length - 1  # a track's detection with which it is long enough
                for track in sorted(self.long_tracks(self.n_frames), key=lambda t: (t.frames[full], t.person_id)):
                    self.number(track)  # whether anything is drawn or not
                self.n_frames += n_frames
                yield n_frames

    def long_tracks(self, first: int) -> list[Track]:
        """The tracks with a detection in frame `first` or later, as they are linked so far, that are long enough."""
        return [track for track in self.linker.tracks_since(first) if len(track) >= self.settings.filter_length]

    def number(self, track: Track) -> int:
        """The person's number; a new one takes the next, so numbers rise as tracks become long enough."""
        return self.numbers.setdefault(track.person_id, len(self.numbers))

    def probabilities(self, track: Track, first: int = 0) -> tuple[np.ndarray, slice]:
        """Class probabilities of a track's frames from `first` on, and which of its rows these are."""
        rows = slice(int(np.searchsorted(track.frames, first)), None)
        frames = track.frames[rows]
        queries = np.stack([self.queries[row] for row in track.rows[rows]])
        features = None if self.features is None else self.features[frames]
        times = frames - track.frames[0]
        return action_probabilities(self.models.head, queries, times, features, rows.start), rows

    def people(self, first: int, last: int) -> dict[int, list[Person]]:
        """The people of each frame from `first` to before `last`, with their actions, as they are linked so far."""
        people: dict[int, list[Person]] = defaultdict(list)
        for track in self.long_tracks(first):
            if track.frames[0] >= last:
                continue
            probabilities, rows = self.probabilities(track, first - WINDOW)
            number, no_action = self.number(track), probabilities.shape[1] - 1
            carries = carried_actions(probabilities, self.settings.topk, self.settings.action_th)
            columns = track.frames[rows].tolist(), track.boxes[rows], probabilities, carries
            for frame, box, scores, carried in zip(*columns, strict=True):
                if first <= frame < last:
                    actions = sorted(np.flatnonzero(carried).tolist(), key=lambda label: -scores[label])
                    label, *others = [(label, float(scores[label])) for label in actions or [no_action]]
                    people[frame].append(Person(number, box, *label, tuple(others)))
        return people

    def finish(self) -> dict:
        """Tracks (`people`) and action tubes (`tubes`) of the whole video, as the JSON has them: joined where the
        linker joins finished tracks, under the number of their first piece."""
        people, tubes = [], []
        s = self.settings
        for track in self.linker.finish():
            if len(track) < s.filter_length:
                continue
            number = self.number(track)
            people.append({"person_id": number, **_columns(track.frames, track.boxes, track.scores)})
            probabilities, _ = self.probabilities(track)
            for tube in action_tubes(
                track.frames, track.boxes, probabilities, s.topk, s.min_tube_length, number, s.action_th
            ):
                entry = {"label": self.models.labels[tube.label], "score": float(tube.score), "person_id": number}
                tubes.append({**entry, **_columns(tube.frames, tube.boxes, tube.frame_scores)})
        return {"tubes": sorted(tubes, key=lambda tube: -tube["score"]), "people": people}


def _columns(frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> dict[str, list]:
    """To the last digit: rounded scores tie where the network is sure, which changes metrics."""
    return {"frames": frames.tolist(), "boxes": shorten(boxes).tolist(), "scores": shorten(scores).tolist()}


class Drawing:
    """Draws and encodes the annotated video in a thread of its own, a block of frames while the next is detected."""

    def __init__(self, write: Callable[[np.ndarray, list[Person]], None], tracks: VideoTracks) -> None:
        self.write, self.tracks = write, tracks
        self.images: deque[np.ndarray] = deque()  # of the frames that are not drawn yet
        self.drawn = 0
        self._thread = ThreadPoolExecutor(1, "drawing")
        self._block = self._thread.submit(int)  # the block in work; before the first, one that does nothing

    def keep(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same frames, each kept for drawing in the video's size."""
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

    def _write(self, images: list[np.ndarray], people: list[list[Person]]) -> None:
        for image, shown in zip(images, people, strict=True):
            self.write(image, shown)

    def close(self) -> None:
        """Wait until all is drawn."""
        with self._thread:
            self._block.result()


def predict(path: Path, models: Models, args: Namespace) -> dict:
    """Write a video's files, print a line about it, and return what its JSON holds.

    Raises:
        InputError: the video cannot be used.
    """
    began = time.monotonic()
    video = VideoFrames(path, models.sampling)
    tracks = VideoTracks(video, models)
    json, mp4, xml = (Path(args.out) / f"{output_name(path)}.{suffix}" for suffix in ("json", "mp4", "xml"))
    with ExitStack() as stack:
        total = video.announced or None
        bar = stack.enter_context(progress(desc=path.name, total=total, unit="frame", leave=False, delay=1))
        drawing, frames = None, video
        if not args.no_video:
            write = stack.enter_context(annotated_video(mp4, video.size, video.fps, models.labels, video.announced))
            drawing = stack.enter_context(closing(Drawing(write, tracks)))
            frames = drawing.keep(video)
        for n_frames in tracks.extend(frames):
            while drawing and tracks.n_frames - drawing.drawn >= 2 * BLOCK:
                drawing.draw(drawing.drawn + BLOCK)
            bar.set_postfix_str(f"people {len(tracks.numbers)}", refresh=False)
            bar.update(n_frames)
        if drawing:
            drawing.draw(tracks.n_frames)
        predicted = tracks.finish()
    result = {"video": str(path), "width": video.size[0], "height": video.size[1], "fps": video.fps}
    result |= {"n_frames": tracks.n_frames, "labels": models.labels, "settings": vars(models.settings), **predicted}
    write_json(json, result)
    if args.export:
        write_predicted(result, xml, None if models.sampling.all_frames else video.chosen())
    labels = Counter(tube["label"] for tube in result["tubes"])
    actions = ", ".join(f"{label} {n}" for label, n in labels.most_common()) or "none"
    speed = tracks.n_frames / (time.monotonic() - began)
    written = [str(file) for file, asked in ((mp4, drawing), (json, True), (xml, args.export)) if asked]
    summary = f"{path}: {tracks.n_frames} frames, {len(result['people'])} people, action tubes: {actions}"
    print(f"{summary}; {speed:.0f} frames/s -> {', '.join(written)}")
    return result


def report(results: Sequence[dict], models: Models, args: Namespace) -> Path:
    """Write the page of `--report`; `results` as in the videos' JSON. Returns its path."""
    by_name = {output_name(Path(result["video"])): result for result in results}

    def frames(name: str) -> VideoFrames:
        return VideoFrames(by_name[name]["video"], models.sampling)

    page = predicted_page(by_name, vars(models.settings))
    return write_report(Path(args.out) / "report", page, frames, args.report_videos, args.workers)


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
    paths = [Path(video) for video in args.videos]
    check_paths(paths, Path(args.out))
    start(args)
    models = load_models(args, pick_device(args.device))
    if args.export:
        refuse_names_of_nothing(models.labels)
    results, failed = [], []
    for path in paths:
        try:
            result = predict(path, models, args)
            if args.report:
                results.append(result)
        except InputError as error:
            if len(paths) == 1:
                raise
            tell(f"error: {error}")
            failed.append(str(path))
    if results:
        print(f"report: {report(results, models, args)}")
    if failed:
        raise InputError(f"{counted(len(failed), 'video')} of {len(paths)} could not be used: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
