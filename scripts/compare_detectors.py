"""What several detectors see in one clip, side by side.

python -m scripts.compare_detectors clip.mp4 --detr coco-r101-dc5 checkpoint/ucf101-24/detr/detr/epoch_20.pth
"""

import argparse
from pathlib import Path

from utils.cli import Parser, positive_int, run, share
from utils.flags import add_detector_flags, add_run_flags
from utils.misc import InputError, pick_device, start


def make_parser() -> Parser:
    parser = Parser("Write a clip with the detections of several detectors side by side.")
    parser.add_argument("video", help="video file, or folder of images")
    add_detector_flags(parser)
    action = parser.action_of("detr")
    action.nargs, action.default, action.required, action.metavar = "+", None, True, "DETR"
    parser.flag("models", "checkpoint_root", default="checkpoint", help="folder of downloaded weights")
    parser.flag("output", "psn_score_th", type=share, default=0.5, help="minimum person score of a detection")
    parser.flag("output", "max_frames", type=positive_int, help="frames that are written (default: all)")
    parser.flag("output", "out", default="detectors.mp4", help="the MP4 file")
    add_run_flags(parser)
    return parser


def main() -> None:
    """The command line."""
    args = make_parser().parse_args()
    if Path(args.out).suffix != ".mp4":
        raise InputError(f"--out {args.out}: name an .mp4 file")
    from itertools import islice

    import numpy as np

    from datasets.dataset import VideoFrames
    from datasets.frame_batches import batches
    from models.person_queries import detector_of
    from utils.drawing.side_by_side import detections_panel, write_side_by_side

    start(args)
    device, video, panels = pick_device(args.device), VideoFrames(args.video), []
    for source in args.detr:
        detector = detector_of(argparse.Namespace(**vars(args) | {"detr": source}), device)
        images = batches(islice(video, args.max_frames), detector.frame_size, detector.batch_size)
        parts = [fetch() for _, fetch in detector.start(images, video.size, args.psn_score_th)]
        columns = (np.concatenate([getattr(d, name) for d in parts]) for name in ("frames", "boxes", "scores"))
        panels.append(detections_panel(str(source)[-40:], *columns))
        print(f"{source}: {len(panels[-1].frames)} detections of at least {args.psn_score_th:g}")
    frames = islice(video, args.max_frames)
    print(f"video: {write_side_by_side(args.out, frames, video.size, video.fps, panels)}")


if __name__ == "__main__":
    run(main)
