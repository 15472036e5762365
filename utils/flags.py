"""Flags that several scripts share, each group in one function.

Nothing here imports PyTorch, so that `--help` and a mistyped flag are answered at once.
"""

from utils.cli import Parser, count, not_negative, positive_int
from utils.misc import AMP_TYPES, available_cores

DETECTOR_BATCH = {"cuda": 32, "cpu": 8}  # frames: starting some 500 operations takes a host as long as a GPU 8 frames
MAX_WORKERS = 16  # each decodes batches ahead, which takes memory
OF_DATA = "(default: the data set's)"


def add_data_flags(parser: Parser, needs_videos: bool = True, presets: bool = True) -> None:
    """Flags of every stage: which data set, and where data and checkpoints lie; `presets` (`datasets.presets`)."""
    parser.flag("data", "dataset", required=True, help="built-in data set, or path of a project file")
    parser.flag("data", "data_root", default="data", help="folder of the built-in data sets")
    if needs_videos:
        parser.flag("data", "skip_bad", action="store_true", help="leave out videos that cannot be used, and list them")
    parser.flag("data", "checkpoint_root", default="checkpoint", help="folder of checkpoints, caches and results")
    if presets:
        help_text = "named flags of the data set (its file <dataset>.<preset>.yml), such as published"
        parser.flag("data", "preset", help=help_text)
        help_text = "flags of the preset that keep their defaults"
        parser.flag("data", "preset_except", nargs="+", default=(), metavar="FLAG", help=help_text)


def add_run_flags(parser: Parser) -> None:
    """Flags of every script that computes: device, threads and workers, seed."""
    parser.flag("machine", "device", help="a GPU's number, cuda:N or cpu (default: the first GPU if there is one)")
    help_text = "mixed precision; on a CPU without instructions of that type several times slower than off"
    parser.flag("machine", "amp", choices=tuple(AMP_TYPES), default="off", help=help_text)
    parser.flag("machine", "compile", action="store_true", help="compile the model (a minute more at the start)")
    parser.flag("machine", "workers", type=count, default=min(available_cores(), MAX_WORKERS),
                help=f"threads that decode frames; 0: the main one (default: cores, up to {MAX_WORKERS})")  # fmt: skip
    parser.flag("machine", "threads", type=count, default=0,
                help="CPU threads of PyTorch, whose number may change results' last digits; 0: all cores")  # fmt: skip
    parser.flag("machine", "seed", type=count, default=42, help="seed of every random number")


def add_strict_flag(parser: Parser, section: str) -> None:
    """The flag of the stages that choose or link detections by thresholds."""
    help_text = "scores, similarities and IoUs must exceed their minimum, as published (default: reach it)"
    parser.flag(section, "strict", action="store_true", help=help_text)


def add_clip_flags(parser: Parser, n_frames: int, frames_help: str, used_with: str = "") -> None:
    """Flags of the trainers that see clips of frames; `used_with` names the flag without which some have no effect."""
    parser.flag("data", "shards_path", help=f"{used_with}folder of the shards, or URLs of those to train on, such as "
                "https://host/shard-{000000..000063}.tar (default: <data_root>/<dataset>/shards)")  # fmt: skip
    parser.flag("data", "clips_per_video", type=positive_int, default=1, help="random clips of a video an epoch")
    parser.flag("data", "clips_per_epoch", type=positive_int,
                help="clips of an epoch over all processes, where the shards lie behind URLs")  # fmt: skip
    parser.flag("data", "n_frames", type=positive_int, default=n_frames, help=f"frames of a clip{frames_help}")
    parser.flag("data", "sampling_rate", type=positive_int, default=4, help="stride between the frames of a clip")
    parser.flag("data", "jitter", type=not_negative, default=0.2,
                help=f"{used_with}change of brightness, contrast and saturation")  # fmt: skip
    parser.flag("data", "jitter_hue", type=not_negative, default=0.1, help=f"{used_with}change of hue")
    parser.flag("data", "whole_videos", action="store_true",
                help="take clips from whole videos, as published, not from the annotated part")  # fmt: skip
    parser.flag("data", "no_flip", action="store_true", help=f"{used_with}do not mirror clips, as published")
    help_text = "mirror each frame of a clip at random, also with --no_flip: queries encode appearance, not position"
    help_text += " (adds a second query cache)" if used_with else ""
    parser.flag("data", "mirror_frames", action="store_true", help=help_text)
    help_text = "paint over one of several people in a frame at random: queries encode a person, not who else is there"
    help_text += " (adds a query cache)" if used_with else ""
    parser.flag("data", "erase_people", action="store_true", help=help_text)


def add_log_flags(parser: Parser) -> None:
    """Flags of every script that reports metrics: where to, and whether as plots too."""
    parser.flag("run", "comet", choices=("online", "offline", "disabled"), default="online",
                help="Comet: its server (where there is a key), an archive to upload later, or none")  # fmt: skip
    parser.flag("run", "plot", action="store_true", help="plot the metrics as PNG files too")
    parser.flag("run", "plot_format", nargs="+", choices=("png", "pdf"),
                help="file formats of --plot; PNG is always written (default: png)")  # fmt: skip


def add_report_flags(parser: Parser, shows: str = "metrics, errors and videos", by: str = "errors") -> None:
    """The flags of the page that `shows` videos, those with most of the count `by` first."""
    help_text = f"write a page (index.html) that shows {shows} in a browser"
    parser.flag("run", "report", action="store_true", help=help_text)
    help_text = f"number of videos on the page of --report, those with most {by} first; 0: all"
    parser.flag("run", "report_videos", type=count, default=100, help=help_text)


def add_evaluation_flags(parser: Parser) -> None:
    """Flags of the evaluations: where metrics go, and what is shown of the videos (`utils.results.Views`)."""
    add_log_flags(parser)
    help_text = "videos to write as MP4, ground truth and predictions side by side"
    parser.flag("run", "side_by_side", nargs="+", default=(), metavar="VIDEO", help=help_text)
    add_report_flags(parser)


def add_training_flags(
    parser: Parser, epochs: int, batch_size: int, lr: float, lr_drop: int, batch_help: str, lr_flag: str = "lr"
) -> None:
    """Flags of every trainer; the arguments are this trainer's published settings."""
    parser.flag("training", "epochs", type=positive_int, default=epochs, help="epochs to train")
    parser.flag("training", "batch_size", type=positive_int, default=batch_size, help=batch_help)
    parser.flag("training", lr_flag, dest="lr", type=not_negative, default=lr, help="learning rate")
    parser.flag("training", "weight_decay", type=not_negative, default=1e-4, help="AdamW's weight decay")
    parser.flag("training", "lr_schedule", choices=("step", "cosine", "constant"), default="step",
                help="learning rate; step: a tenth after --lr_drop epochs; cosine: to zero at the end")  # fmt: skip
    help_text = "epochs before the learning rate drops; --epochs or more: never"
    parser.flag("training", "lr_drop", type=positive_int, default=lr_drop, help=help_text)
    parser.flag("training", "warmup_steps", type=count, default=0, help="steps of linear learning-rate warm-up")
    help_text = "maximum gradient norm; 0: no clipping"
    parser.flag("training", "clip_max_norm", type=not_negative, default=0.1, help=help_text)
    parser.flag("run", "resume", action="store_true", help="continue the last run of this name where it stopped")
    parser.flag("run", "save_epochs", type=positive_int, default=1,
                help="epochs between checkpoints, and between evaluations on --val_subset where it exists")  # fmt: skip
    parser.flag("run", "save_steps", type=count, default=0,
                help="steps between saves of the training state; 0: every 10 minutes")  # fmt: skip
    help_text = "skip steps whose loss is not finite, and count them"
    parser.flag("run", "skip_nonfinite", action="store_true", help=help_text)
    add_log_flags(parser)


def add_detector_flags(parser: Parser, detr: str | None = "coco-r101-dc5", batch_flag: str = "detr_batch") -> None:
    """Flags of the stages that run the frozen detector."""
    shown = "" if detr else " (default: the one trained with)"
    parser.flag("detector", "detr", default=detr,
                help="frozen detector: an official name, a checkpoint, or hf:<name or folder> of a detector of "
                f"transformers{shown}")  # fmt: skip
    parser.flag("detector", "image_size", type=count, default=0,
                help="longer side of frames; 0: what it was trained for, 512 for official ones")  # fmt: skip
    help_text = "pad frames to squares and normalise boxes by their side, as published (default: as trained)"
    parser.flag("detector", "pad_square", action="store_true", help=help_text)
    parser.flag("detector", batch_flag, dest="detr_batch", type=count, default=0,
                help="frames a batch; 0: {cuda} on a GPU, {cpu} on a CPU".format(**DETECTOR_BATCH))  # fmt: skip
    help_text = "decoder layer of query vectors, from 1; published: 1 (default: as trained, else the last)"
    parser.flag("detector", "query_layer", type=positive_int, help=help_text)
    add_person_flag(parser, "detector")


def add_person_flag(parser: Parser, section: str) -> None:
    """The flag of every stage that loads a detector: which of its classes is the person."""
    parser.flag(section, "person_label",
                help="the detector's class of people: an index or, of hf:, a name "
                "(default: the checkpoint's; 1 of COCO weights, 'person' of hf:)")  # fmt: skip


def add_frame_flags(parser: Parser) -> None:
    """Flags of the action heads that use frame features."""
    parser.flag("frames", "x3d_weights", help="X3D-XS weights, for --head_type x3d (default: cached or downloaded)")
    parser.flag("frames", "x3d_clip", choices=("centre", "repeat"), default="centre",
                help="centre: real neighbouring frames; repeat: the frame itself")  # fmt: skip
