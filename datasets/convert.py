"""Convert annotations between formats, and predictions of other programs to the form that `eval_map.py` reads.

python -m datasets.convert --from cvat --options options.json annotations.xml annotations.json
"""

from collections.abc import Mapping
from pathlib import Path

from datasets import predictions
from datasets.annotations import count_lines, keep_usable, read_video
from datasets.formats import FORMATS, WRITERS, options_of, read_annotation_file
from datasets.formats.common import AnnotationFile, RawTube, RawVideo
from datasets.formats.options import OPTIONS, check_options
from utils.cli import Parser, run
from utils.misc import InputError, counted
from utils.storage.files import read_json, write_json

PREDICTIONS = {f"pred_{name}": name for name in predictions.FORMATS}


def convert(source: Path, format: str, options: Mapping[str, object], target: Path, to: str = "json") -> list[str]:
    """Read `source`, check it, write `target`; returns lines about what was read and what was not carried over.

    Args:
        format: a name of `FORMATS`, or of `PREDICTIONS`, of other programs or of our own.
        options: what the file does not say (`datasets.formats.options`).
        to: a name of `WRITERS`; predictions are written in the project's own alone.

    Raises:
        InputError: names the file, the place and the fault.
    """
    if format in PREDICTIONS:
        if to != "json":
            raise InputError(f"--to {to}: predictions are written as json alone")
        content = predictions.convert(PREDICTIONS[format], source, options)
        write_json(target, content)
        n = sum(len(video["tubes"]) for video in content["videos"].values())
        return [f"{counted(len(content['videos']), 'video')}, predicted tubes {n}", f"-> {target}"]
    known = {"labels": OPTIONS["labels"], **options_of(format)}
    check_options("options", options, known, f"an option of the format {format}")
    try:
        file = read_annotation_file(source, format, options)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None
    named = (tube.label for video in file.videos.values() for tube in video.tubes if isinstance(tube.label, str))
    labels = list(options.get("labels") or file.labels or dict.fromkeys(named))
    videos = keep_usable(str(source), file.videos, lambda name: read_video(name, file, labels))
    checked = {}
    for name, video in videos.items():
        tubes = [RawTube(t.frames, t.boxes, None if t.label < 0 else labels[t.label], t.person_id) for t in video.tubes]
        checked[name] = RawVideo(video.width, video.height, video.n_frames, tubes)
    lost = WRITERS[to](AnnotationFile(source, checked, labels), target)
    lines = [f"not carried over as it is: {line}" for line in lost]
    return [*count_lines(videos, labels), *file.notes, *lines, f"-> {target}"]


def main() -> None:
    """The command line."""
    parser = Parser("Convert annotations between formats, or predictions to the form that eval_map.py reads.")
    parser.add_argument("input", help="file, or the folder that the format is")
    parser.add_argument("output", help="file to write (cvat, mot: or a folder, for one file a video)")
    readable = (*FORMATS, *PREDICTIONS)
    parser.flag("formats", "from", dest="source", required=True, choices=readable, metavar="FORMAT",
                help=f"format of the input: {', '.join(readable)}")  # fmt: skip
    parser.flag("formats", "to", choices=tuple(WRITERS), default="json", metavar="FORMAT",
                help=f"format to write: {', '.join(WRITERS)}")  # fmt: skip
    parser.flag("formats", "options", help="JSON file of what the input does not say (docs/own_data.md lists it)")
    args = parser.parse_args()
    if Path(args.output).resolve() == Path(args.input).resolve():
        raise InputError(f"{args.output}: the input would be written over; name another output")
    options = read_json(args.options, "file of options") if args.options else {}
    if not isinstance(options, dict):
        raise InputError(f"{args.options}: options are a mapping")
    for line in convert(Path(args.input), args.source, options, Path(args.output), args.to):
        print(line)


if __name__ == "__main__":
    run(main)
