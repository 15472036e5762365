"""The settings of linking: their flags, the names of tars of tracks, whether a tar is up to date, and whether a head
fits its tracks."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from models.linkers import LINKERS
from models.tube import LINK_CUES, Linker
from utils.cli import Parser, cosine, number_or_name, positive_int, share
from utils.flags import OF_DATA, add_strict_flag
from utils.gt_tubes import tubes_checksum
from utils.misc import InputError, checksum, counted, exceeding, tell
from utils.storage.files import epoch_path, load_checkpoint
from utils.storage.tracks import TrackStore

if TYPE_CHECKING:
    from datasets.annotations import Video
    from datasets.config import Project
    from datasets.frame_batches import SubsetVideos


@dataclass(frozen=True)
class LinkSettings:
    """What a run's tracks depend on besides its models; the fields are named as their flags."""

    load_epoch: int
    psn_score_th: float
    sim_th: float
    filter_length: int
    end_consecutive_frames: int
    iou_th: float
    link_cues: str
    linker: str = "published"
    strict: bool = False

    @property
    def name(self) -> str:
        """All settings as a file's stem, e.g. epoch20-psn0.9-sim0.5-len8-end8-iou0.2-feature."""
        numbers = f"epoch{self.load_epoch}-psn{self.psn_score_th:g}-sim{self.sim_th:g}-len{self.filter_length}"
        linker = ("" if self.linker == "published" else f"-{self.linker}") + "-strict" * self.strict
        return f"{numbers}-end{self.end_consecutive_frames}-iou{self.iou_th:g}-{self.link_cues}{linker}"

    def minimum(self, name: str) -> float:
        """The lowest score or similarity that passes the threshold `name`."""
        return exceeding(getattr(self, name)) if self.strict else getattr(self, name)

    def make_linker(self) -> Linker:
        """A linker with these settings, for one video."""
        return Linker(self.minimum("sim_th"), self.end_consecutive_frames, self.link_cues, LINKERS[self.linker])


def add_linking_flags(parser: Parser, epoch_flag: str = "load_epoch") -> None:
    """Flags of `LinkSettings`, which every stage from linking on takes; a later stage finds its tracks by them."""
    help_text = "epoch of the person encoder (default: the last)"
    parser.flag("linking", epoch_flag, dest="load_epoch", type=positive_int, help=help_text)
    parser.flag("linking", "link_cues", choices=tuple(LINK_CUES), default="feature",
                help="what detections are linked by: person features, or boxes")  # fmt: skip
    parser.flag("linking", "linker", choices=tuple(LINKERS), default="published",
                help="published: greedy, by newest detection; robust: fewer identity switches")  # fmt: skip
    parser.flag("linking", "psn_score_th", type=share, help=f"minimum person score of a detection {OF_DATA}")
    help_text = f"minimum similarity of a link: cosine, or IoU with --link_cues iou {OF_DATA}"
    parser.flag("linking", "sim_th", type=cosine, help=help_text)
    parser.flag("linking", "filter_length", type=positive_int, help=f"minimum detections of a track {OF_DATA}")
    parser.flag("linking", "end_consecutive_frames", type=positive_int,
                help="consecutive frames without a link after which a track closes "
                "(default: the linker's, else the data set's)")  # fmt: skip
    help_text = "minimum IoU with the annotated person whose action a frame of a track takes as its label"
    parser.flag("linking", "iou_th", type=share, help=f"{help_text} {OF_DATA}")
    add_strict_flag(parser, "linking")


def link_settings(args: Namespace, project: "Project", root: Path) -> LinkSettings:
    """The settings of `add_linking_flags`, with the data set's defaults and the last epoch of the run in `root`."""
    patience = args.end_consecutive_frames or LINKERS[args.linker].end_consecutive_frames
    epoch = args.load_epoch
    if epoch is None:
        newest = epoch_path(root / "encoder", None, "person encoder", "train_qmm.py")
        epoch = int(newest.stem.removeprefix("epoch_"))
    settings = LinkSettings(
        load_epoch=epoch,
        psn_score_th=project.default("psn_score_th", given=args.psn_score_th),
        sim_th=project.default(LINK_CUES[args.link_cues].default_th, given=args.sim_th),
        filter_length=project.default("filter_length", given=args.filter_length),
        end_consecutive_frames=project.default("end_consecutive_frames", given=patience),
        iou_th=project.default("iou_th", given=args.iou_th),
        link_cues=args.link_cues,
        linker=args.linker,
        strict=args.strict,
    )
    settings.make_linker()  # refuses a linker that does not go with the cue, before a detector runs
    return settings


def tar_of_tracks(args: Namespace, settings: LinkSettings, root: Path, subset: str) -> Path:
    """The tar that `eval_qmm.py` writes for a subset; `root` is the run's folder.

    Its name has the linking's settings and, where the flags have the detector run otherwise than the person encoder was
    trained with, the detector's, e.g. <settings.name>-detector_size640_bf16.tar.
    """
    changes = []
    if args.image_size or args.pad_square or args.person_label is not None:
        path = epoch_path(root / "encoder", settings.load_epoch, "person encoder", "train_qmm.py")
        trained = load_checkpoint(path, "person encoder")["config"]["detector"]
        if args.image_size not in (0, trained["image_size"]):
            changes.append(f"size{args.image_size}")
        if args.pad_square and not trained["square"]:
            changes.append("square")
        if number_or_name(args.person_label) not in (None, trained["person_label"]):
            changes.append(f"person{args.person_label}".replace("/", "_"))
    if args.amp != "off":
        changes.append(args.amp)
    name = "_".join([f"{settings.name}-detector", *changes]) if changes else settings.name
    return root / "qmm_tubes" / subset / f"{name}.tar"


def existing_tar(args: Namespace, settings: LinkSettings, root: Path, subset: str) -> Path:
    """The tar of tracks that a later stage reads.

    That of `tar_of_tracks`. Where it is missing and exactly one tar has these link settings, that one, with a note: the
    `--amp` of a later stage may concern that stage's own network alone.
    """
    from utils.distributed import rank  # with PyTorch

    path = tar_of_tracks(args, settings, root, subset)
    others = [*path.parent.glob(f"{settings.name}.tar"), *path.parent.glob(f"{settings.name}-detector_*.tar")]
    if path.is_file() or len(others) != 1:
        return path
    if rank() == 0:
        tell(f"note: {others[0]}: its detector ran with other flags than these (--amp, --image_size)")
    return others[0]


def tracks_made_with(settings: LinkSettings, project: "Project", encoder: str) -> dict:
    """What tracks depend on besides videos, annotation and detector; `encoder` as of `models.weights.weights_hash`."""
    made_with = asdict(settings) | {"encoder": encoder, "labels": project.labels}
    options = LINKERS[settings.linker]
    if settings.linker != "published":  # by its name alone, a linker that was improved since would look the same
        made_with["linker_options"] = str(vars(options) | {"assignment": options.assignment.__name__})
    if project.multi_label:
        made_with["multi_label"] = True
    if not project.sampling.all_frames:
        made_with["sampling"] = project.sampling.for_other_videos
    return made_with


def tracks_sources(
    project: "Project", videos: "SubsetVideos", annotations: Mapping[str, "Video"]
) -> dict[str, list[int]]:
    """By video: what identifies its file and the frames used, and last a checksum of the annotation that labels."""

    def annotated(video: "Video | None") -> int:
        tubes = tubes_checksum(video.tubes if video else [], project.multi_label)
        if project.multi_label or video is None or video.key_frames is None:
            return tubes
        return int(checksum(str(tubes), video.key_frames), 16)

    sources = videos.sources() | {name: [] for name in videos.bad}
    return {name: [*file, annotated(annotations.get(name))] for name, file in sources.items()}


def open_tracks(
    path: Path,
    settings: LinkSettings,
    project: "Project",
    videos: "SubsetVideos",
    annotations: Mapping[str, "Video"],
    bad: dict[str, str] | None,
) -> TrackStore:
    """A subset's tracks, for a later stage; `path` as of `tar_of_tracks`, `bad` as of `TrackStore`.

    Missing video files are not compared, nor is a person encoder whose checkpoint is missing.

    Raises:
        InputError: the tar is missing or damaged, or `eval_qmm.py` would make it of something else now.
    """
    from models.person_encoder import encoder_hash  # with PyTorch

    remedy = f"eval_qmm.py --subset {videos.subset}"
    store = TrackStore(path, remedy, bad)
    if others := {*store.names} ^ (annotations.keys() - (bad or {}).keys()):  # missed, or false positives
        text = f"{counted(len(others), 'video')} in it alone or in the subset alone, the first {min(others)!r}"
        raise InputError(f"{path}: {text}; run {remedy} again")
    encoder = path.parents[2] / "encoder" / f"epoch_{settings.load_epoch}.pth"
    made_with = tracks_made_with(settings, project, encoder_hash(encoder) if encoder.is_file() else "")
    ignored = {"detector"} if encoder.is_file() else {"detector", "encoder"}
    sources = tracks_sources(project, videos, annotations)
    for name in store.names:
        old_settings, old_source = (store.json(name)["made_from"][key] for key in ("settings", "source"))
        keys = made_with | old_settings
        changed = [key for key in keys if key not in ignored and old_settings.get(key) != made_with.get(key)]
        if changed:
            fault = f"was made with settings that have changed since ({', '.join(changed)})"
        elif old_source[-1] != sources[name][-1]:
            fault = f"its labels are of another annotation of {name!r} than today's"
        elif old_source != sources[name] and videos.paths[name].exists():
            fault = f"was made from other frames of {name!r} than today's"
        else:
            continue
        raise InputError(f"{path}: {fault}; run {remedy} again")
    return store


def check_head(path: Path, config: dict, project: "Project", tracks: TrackStore) -> None:
    """Compare what a head was trained for and on with what it is evaluated on.

    Raises InputError where labels, detector, link cue or the encoder (of one epoch) differ; other settings of linking
    are a note on stderr.
    """
    if config["labels"] != project.labels:
        raise InputError(f"{path}: was trained for other labels than those of {project.path}; train the head again")
    if config["head"]["multi_label"] != project.multi_label:
        raise InputError(f"{path}: was trained with multi_label {not project.multi_label}; train the head again")
    trained, used = ({**settings, **settings["detector"]} for settings in (config["settings"], tracks.settings))
    for name, noun in (("encoder", "encoder"), ("key", "detector"), ("link_cues", "link_cues")):
        other_epoch = name == "encoder" and trained["load_epoch"] != used["load_epoch"]  # is in the note
        if trained[name] != used[name] and not other_epoch:
            fault = f"was trained on tracks linked by another {noun}, {trained[name]}, than {tracks.path}, {used[name]}"
            raise InputError(f"{path}: {fault}; train it again, or run eval_qmm.py with the same flags for both")
    if trained.get("sampling") != used.get("sampling"):
        raise InputError(f"{path}: was trained at another rate or stride than {project.path} has now; train it again")
    if names := [field.name for field in fields(LinkSettings) if trained[field.name] != used[field.name]]:
        differences = "; ".join(f"{name} {trained[name]}, here {used[name]}" for name in names)
        tell(f"note: {path} was trained on tracks of other settings: {differences}")
