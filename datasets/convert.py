"""Convert annotations between formats, and predictions of other programs to the form that `eval_map.py` reads.

python -m datasets.convert --from cvat --options options.json annotations.xml annotations.json
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasets import predictions
from datasets.annotations import print_warnings, read_video, refuse
from datasets.formats import FORMATS, WRITERS, options_of, read_annotation_file
from datasets.formats.common import AnnotationFile, RawTube, RawVideo
from datasets.formats.options import OPTIONS, check_options
from datasets.likely_mistakes import frame_step
from utils.cli import Parser, run
from utils.misc import InputError, counted
from utils.storage.files import read_json, write_json

PREDICTIONS = {f"pred_{name}": name for name in predictions.FORMATS}


def checked(file: AnnotationFile, labels: list[str]) -> AnnotationFile:
    """An annotation as `datasets.annotations` lets it pass: person ids are set, labels are names, boxes without area
    are left out; InputError at the first fault for which a video cannot be used."""
    videos, faults = {}, []
    for name in file.videos:
        video, of_video = read_video(name, file, labels)
        refuse(of_video, f"{file.path}: ")
        faults += of_video
        tubes = [RawTube(t.frames, t.boxes, None if t.label < 0 else labels[t.label], t.person_id) for t in video.tubes]
        videos[name] = RawVideo(video.width, video.height, video.n_frames, tubes)
    print_warnings(str(file.path), faults)
    return AnnotationFile(file.path, videos, labels)


def convert(source: Path, format: str, options: Mapping[str, object], target: Path, to: str = "json") -> list[str]:
    """Read `source`, check it, write `target`; returns lines about what was read and what was not carried over.

    Args:
        source: a file, or a folder of a format that has such.
        format: a name of `FORMATS`, or of `PREDICTIONS`, of other programs or of our own.
        options: what the file does not say (`datasets.formats.options`).
        target: written whole or not at all.
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
    try:
        known = {"labels": OPTIONS["labels"], **options_of(format)}
        check_options(options, known, f"an option of the format {format}")
        file = read_annotation_file(source, format, options)
    except ValueError as error:
        raise InputError(f"options: {error}") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None
    named = (tube.label for video in file.videos.values() for tube in video.tubes if isinstance(tube.label, str))
    notes = file.notes
    file = checked(file, list(options.get("labels") or file.labels or dict.fromkeys(named)))
    lost = WRITERS[to](file, target)
    lines = [f"not carried over as it is: {line}" for line in lost]
    return [*summary(file), *notes, *in_steps(file, format), *lines, f"-> {target}"]


def in_steps(file: AnnotationFile, format: str) -> list[str]:
    """A line about videos that are annotated in every k-th frame alone: what is written does not say so."""
    names = [name for name, video in file.videos.items() if frame_step(video) > 1]
    if not names:
        return []
    remedy = "interpolate the boxes"
    if "fill" in options_of(format):
        remedy = "the option `fill` interpolates them"
    elif format.startswith("ava"):  # its key frames are known to training
        remedy = f"train with format: {format}"
    text = "annotated in steps; training takes frames between for frames without people"
    return [f"{counted(len(names), 'video')} {text}: {remedy} (first: {names[0]!r})"]


def summary(file: AnnotationFile) -> list[str]:
    """What was read, in lines."""
    tubes = [tube for video in file.videos.values() for tube in video.tubes]
    empty = sum(not video.tubes for video in file.videos.values())
    people = len({(name, tube.person_id) for name, video in file.videos.items() for tube in video.tubes})
    counts = Counter(tube.label for tube in tubes)
    named = [f"{label} {counts[label]}" for label in file.labels] + [f"no action {counts[None]}"] * (None in counts)
    return [
        f"{counted(len(file.videos), 'video')} ({empty} without tubes), people {people}, tubes {len(tubes)}, "
        f"boxes {sum(len(tube.frames) for tube in tubes)}",
        "tubes by label: " + (", ".join(named) or "none"),
    ]


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
    options = read_json(args.options, "file of options") if args.options else {}
    if not isinstance(options, dict):
        raise InputError(f"{args.options}: options are a mapping")
    for line in convert(Path(args.input), args.source, options, Path(args.output), args.to):
        print(line)


if __name__ == "__main__":
    run(main)
