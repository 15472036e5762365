"""`python -m datasets.synthetic`, see `datasets.synthetic.videos`."""

from pathlib import Path

from datasets.synthetic.layouts import LAYOUTS
from datasets.synthetic.videos import make_synthetic
from utils.cli import Parser, count, positive_int, run, share
from utils.misc import available_cores


def main() -> None:
    parser = Parser("Render the synthetic data set: people in eight actions, annotated, the same for the same seed.")
    parser.flag("output", "data_root", default="data", help="the data set goes to <data_root>/synthetic")
    parser.flag("output", "n_train", type=count, default=120, help="training videos")
    parser.flag("output", "n_val", type=count, default=30, help="held-out videos")
    parser.flag("output", "seed", type=count, default=0, help="seed of people, actions and scenes")
    parser.flag("videos", "width", type=positive_int, default=160, help="pixels")
    parser.flag("videos", "height", type=positive_int, default=120, help="pixels; people are 35 to 60 %% of it")
    parser.flag("videos", "length", type=positive_int, nargs=2, default=[40, 72],
                help="frames of the shortest and longest video")  # fmt: skip
    parser.flag("output", "layout", choices=("json", *LAYOUTS), default="json",
                help="data set in whose format the annotation is written too, with a project.yml")  # fmt: skip
    parser.flag(
        "videos", "two_at_once", type=share, default=0.0, help="share of walking and running people who wave as well"
    )
    parser.flag("videos", "max_people", type=positive_int, default=4, help="maximum number of people in a video")
    parser.flag("videos", "workers", type=positive_int, default=available_cores(), help="processes")
    args = vars(parser.parse_args())
    root = Path(args.pop("data_root")) / "synthetic"
    make_synthetic(root, **args)
    print(f"{root}: {args['n_train']} training and {args['n_val']} held-out videos")


if __name__ == "__main__":
    run(main)
