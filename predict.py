"""Action tubes of any video, with the checkpoints alone: an annotated video, a JSON of tubes, a summary line.

    python predict.py video.mp4 --detr detr.pth --encoder encoder.pth --head head.pth --out predictions

Frames are written while the video is read. Actions in the picture are judged by `WINDOW` frames before and `BLOCK`
frames after; those in the JSON by whole tubes, which is the same for videos up to `WINDOW` frames.
"""

import argparse
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from datasets.dataset import VideoFrames
from datasets.frame_batches import VideoBatches, open_videos
from models.action_head import action_probabilities, load_head
from models.frame_features import BackboneFeatures, X3DFeatures, frame_extractor
from models.frozen import run_ahead
from models.person_encoder import encode, load_encoder
from models.person_queries import Detector, detector_of
from models.tube import Linker, action_tubes
from models.weights import weights_hash
from utils.box_ops import Track
from utils.cli import Parser, cosine, positive_int, run, share
from utils.drawing.timeline import Person
from utils.drawing.video_writer import TubeVideoWriter
from utils.flags import add_detector_flags, add_frame_flags, add_run_flags
from utils.misc import InputError, pick_device, start
from utils.storage.files import write_json

BLOCK = 64  # frames that are drawn at a time
WINDOW = 512  # frames before a block that its actions are judged by


def parse_args() -> argparse.Namespace:
    parser = Parser("Find people in videos, follow them, and say what each does when.")
    parser.add_argument("videos", nargs="+", help="video files, or folders of frames")
    add_detector_flags(parser, detr=None)
    parser.flag("models", "encoder", required=True, help="checkpoint of train_qmm.py")
    parser.flag("models", "head", required=True, help="checkpoint of train_action_head.py")
    parser.flag("models", "checkpoint_root", default="checkpoint", help="folder of downloaded weights")
    add_frame_flags(parser)
    of_head = "(default: as the head was trained)"
    parser.flag("linking", "psn_score_th", type=share, help=f"person score of a query that counts {of_head}")
    parser.flag("linking", "sim_th", type=cosine, help=f"similarity down to which queries link {of_head}")
    parser.flag("linking", "filter_length", type=positive_int, help=f"people of fewer queries are dropped {of_head}")
    parser.flag("linking", "end_consecutive_frames", type=positive_int,
                help=f"frames without a link after which a tube ends {of_head}")  # fmt: skip
    parser.flag("action tubes", "topk", type=positive_int, default=1, help="classes of a frame that form action tubes")
    parser.flag("action tubes", "min_tube_length", type=positive_int,
                help=f"minimum frames of an action tube {of_head}")  # fmt: skip
    parser.flag("output", "out", default="predictions", help="folder for <video>.mp4 and <video>.json")
    parser.flag("output", "no_video", action="store_true", help="write the JSON alone")
    add_run_flags(parser)
    return parser.parse_args()


class Models:
    """The three checkpoints, and how people are linked: as the head was trained, where no flag says otherwise."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.head, config, _ = load_head(args.head, device)
        self.encoder, encoder_config, _ = load_encoder(args.encoder, device)
        self.labels, settings = config["labels"], config["settings"]
        if settings["encoder"] != weights_hash(self.encoder.state_dict()):
            raise InputError(f"{args.head}: was trained on people linked by another encoder than {args.encoder}")
        self.detector = detector_of(args, device, encoder_config["detector"])
        self.link_cue = settings["link_cues"]
        for name in ("psn_score_th", "sim_th", "filter_length", "end_consecutive_frames"):
            if getattr(args, name) is None:
                setattr(args, name, settings[name])
        if args.min_tube_length is None:
            args.min_tube_length = config.get("min_tube_length", 9)
        self.extractor = None
        if self.head.needs_frames:
            self.extractor = frame_extractor(self.head.needs_frames, args, device, encoder_config["detector"])
            if self.extractor.key != config["frames"]:
                raise InputError(f"{args.head}: was trained with features {config['frames']}, not {self.extractor.key}")


class Follower:
    """The people of one video as it is read: linked tubes, their queries, the numbers that people are shown by."""

    def __init__(self, path: Path, models: Models, args: argparse.Namespace) -> None:
        self.path, self.models, self.args = path, models, args
        self.tubes = Linker(args.sim_th, args.end_consecutive_frames, models.link_cue)
        self.queries: list[np.ndarray] = []
        self.ids: dict[int, int] = {}
        self.n_frames, self.features = 0, None
        if models.extractor:
            for video in self._open(models.extractor):
                started = run_ahead(models.extractor.start(video.batches))
                self.features = np.concatenate([fetch() for _, fetch in started])
        self._opened = self._open(models.detector)  # kept: with it its decoder would end
        self.video = next(self._opened)

    def _open(self, model: Detector | BackboneFeatures | X3DFeatures) -> Iterator[VideoBatches]:
        pin = model.device.type == "cuda"
        return open_videos([(self.path.name, self.path)], model.image_size, model.batch_size, 1, pin)

    def follow(self) -> Iterator[int]:
        """Link batch by batch; how many frames are linked after each."""
        started = self.models.detector.start(self.video.batches, self.video.size, self.args.psn_score_th)
        for n_frames, fetch in run_ahead(started):
            found = fetch()
            features = encode(self.models.encoder, found.queries) if self.tubes.cue.needs_features else None
            self.tubes.extend(found.frames, found.boxes, found.scores, features)
            self.queries.extend(found.queries)
            self.n_frames += n_frames
            yield self.n_frames

    def actions(self, tube: Track, first: int = 0) -> tuple[np.ndarray, slice]:
        """Class probabilities of a tube's frames from `first` on, and which of its rows these are."""
        rows = slice(int(np.searchsorted(tube.frames, first)), None)
        frames = tube.frames[rows]
        queries = np.stack([self.queries[row] for row in tube.rows[rows]])
        features = None if self.features is None else self.features[frames]
        return action_probabilities(self.models.head, queries, frames - tube.frames[0], features), rows

    def person_id(self, tube: Track) -> int:
        """The person's number, from 0 in the order in which people are first shown."""
        return self.ids.setdefault(tube.person_id, len(self.ids))

    def people(self, first: int, last: int) -> dict[int, list[Person]]:
        """Who is there and does what in the frames from `first` to before `last`."""
        shown: dict[int, list[Person]] = defaultdict(list)
        for tube in self.tubes.tracks_since(first):
            if len(tube.frames) < self.args.filter_length or tube.frames[0] >= last:
                continue
            found, rows = self.actions(tube, first - WINDOW)
            number = self.person_id(tube)
            for frame, box, each in zip(tube.frames[rows].tolist(), tube.boxes[rows], found, strict=True):
                if first <= frame < last:
                    label = int(each.argmax())
                    shown[frame].append(Person(number, box, label, float(each[label])))
        return shown

    def action_tubes(self) -> tuple[list[dict], list[dict]]:
        """People and action tubes of the whole video, as the JSON holds them."""
        people, actions = [], []
        for tube in self.tubes.finish():
            if len(tube) < self.args.filter_length:
                continue
            number = self.person_id(tube)
            people.append(_entry(tube.frames, tube.boxes, tube.scores, person_id=number))
            found, _ = self.actions(tube)
            for action, scores in action_tubes(
                tube.frames, tube.boxes, found, self.args.topk, self.args.min_tube_length, number
            ):
                label = self.models.labels[action.label]
                entry = _entry(action.frames, action.boxes, scores, person_id=number)
                actions.append({"label": label, "score": round(action.score, 4), **entry})
        return people, actions


def _entry(frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, **named: int) -> dict:
    columns = {"frames": frames.tolist(), "boxes": boxes.astype(float).round(2).tolist()}
    return {**named, **columns, "scores": scores.astype(float).round(4).tolist()}


def predict(path: Path, out: Path, models: Models, args: argparse.Namespace) -> str:
    """Write `out/<name>.json` and, unless `--no_video`, `out/<name>.mp4`; the summary line."""
    began = time.monotonic()
    follower = Follower(path, models, args)
    video, drawn = follower.video, 0
    targets = [out / f"{path.stem}.json"]
    with contextlib.ExitStack() as stack:
        writer, frames = None, iter(())
        if not args.no_video:
            targets.insert(0, out / f"{path.stem}.mp4")
            reader = VideoFrames(path)
            frames = iter(reader)
            writer = stack.enter_context(
                TubeVideoWriter(targets[0], video.size, video.fps, models.labels, n_frames=len(reader))
            )

        def draw(last: int) -> None:
            people = follower.people(drawn, last) if writer else {}
            for number, frame in zip(range(drawn, last), frames, strict=False):
                writer.write(frame, people.get(number, []))

        for linked in follower.follow():
            while linked - drawn >= 2 * BLOCK:
                draw(drawn + BLOCK)
                drawn += BLOCK
        draw(follower.n_frames)
    people, actions = follower.action_tubes()
    names = ("psn_score_th", "sim_th", "filter_length", "end_consecutive_frames", "topk", "min_tube_length")
    write_json(
        targets[-1],
        {
            "video": str(path),
            "width": video.size[0],
            "height": video.size[1],
            "fps": video.fps,
            "n_frames": follower.n_frames,
            "labels": models.labels,
            "settings": {name: getattr(args, name) for name in names},
            "tubes": sorted(actions, key=lambda tube: -tube["score"]),
            "people": people,
        },
    )
    counts = Counter(tube["label"] for tube in actions)
    named = ", ".join(f"{label} {n}" for label, n in counts.most_common()) or "none"
    n, seconds, written = follower.n_frames, time.monotonic() - began, ", ".join(map(str, targets))
    found = f"{len(people)} people, action tubes: {named}"
    return f"{path}: {n} frames, {found}; {n / seconds:.0f} frames/s -> {written}"


def main() -> None:
    """The command line."""
    args = parse_args()
    start(args)
    paths = [Path(video) for video in args.videos]
    twice = [stem for stem, n in Counter(path.stem for path in paths).items() if n > 1]
    if twice:
        raise InputError(f"{twice[0]}: two videos have this name; predict them apart, each with an --out of its own")
    for path in paths:  # a mistake in the last one is told before the first has taken its time
        VideoFrames(path)
        target = Path(args.out) / f"{path.stem}.mp4"
        if target.exists() and target.samefile(path):
            raise InputError(f"{path}: the annotated video would be written over it; name another folder with --out")
    models = Models(args, pick_device(args.device))
    for path in paths:
        print(predict(path, Path(args.out), models, args))


if __name__ == "__main__":
    run(main)
