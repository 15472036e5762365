"""Videos and annotations -> shards, written once and read in training.

    python -m datasets.make_shards --dataset ucf101-24 --subset train

A shard is a WebDataset tar. A sample is one video: `<key>.json` (name, size, fps, n_frames, tubes in pixels of the
original frame, and each member's size and checksum) and its frames, `<key>.000000.jpg`, `<key>.000001.jpg`, ... A clip
reads and decodes its own frames only. `index.json` beside the shards lists them.
"""

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2

from datasets.annotations import Video, fit_to_video, read_annotations
from datasets.config import Project, load_project
from datasets.dataset import VideoFrames
from datasets.faults import AnnotationFault, print_warnings, refuse
from datasets.frame_batches import SubsetVideos, measure
from datasets.sampling import Sampling
from datasets.transforms import resize
from utils.cli import Parser, count, percent, positive_int, run, tell_left_out
from utils.misc import InputError, available_cores, progress
from utils.storage.files import lock, naming, remove_parts, unseal, write_sealed
from utils.storage.tars import Member, Sample, read_samples, safe_key, verify_sample, write_tar

REMEDY = "make the shards again with python -m datasets.make_shards"


def project_settings(project: Project) -> dict:
    """The settings of samples that the project file makes: `sampling` and `n_actions`, as `encode_video` takes them."""
    settings: dict = {}
    if not project.sampling.all_frames:
        settings["sampling"] = asdict(project.sampling)
    if project.multi_label:
        settings["n_actions"] = len(project.labels)
    return settings


def annotation_checksum(video: Video) -> int:
    """A checksum of a video's tubes and key frames, which samples keep as `made_from`'s `annotation`."""
    text = json.dumps([(t.frames.tolist(), t.boxes.tolist(), t.label, t.person_id) for t in video.tubes])
    text += "" if video.key_frames is None else json.dumps(video.key_frames.tolist())
    return zlib.crc32(text.encode())


def _made_from(video: Video, path: Path, settings: dict) -> dict:
    """What a sample depends on: when it is the same, the sample need not be made again."""
    return {**settings, "source": measure(path), "annotation": annotation_checksum(video)}


def frame_member(number: int) -> str:
    """The extension of a frame in its video's sample."""
    return f"{number:06d}.jpg"


def encode_video(
    video: Video, path: Path, spool: Path, settings: dict
) -> tuple[dict, dict[str, Member], list[AnnotationFault]]:
    """Encode the frames of a video, at `path`, as JPEG.

    Args:
        spool: file to write the JPEGs to, until they are copied into a shard.
        settings: `image_size` (longer side in pixels, 0: as it is) and `quality` of the JPEGs; `sampling`, the fields
            of the `Sampling` where not all frames are used; `n_actions` where a person may have several at once.

    Returns:
        The sample's json, its frames by extension, and what is wrong with the annotation but can be corrected.

    Raises:
        InputError: the video cannot be read, or its annotation does not fit it.
    """
    frames = VideoFrames(path, Sampling(**settings.get("sampling", {})))
    jpegs: dict[str, Member] = {}
    stored, at = frames.size, 0
    with naming(spool), spool.open("wb") as out:
        for frame in frames:
            if 0 < settings["image_size"] < max(frames.size):
                frame = resize(frame, settings["image_size"])
            stored = (frame.shape[1], frame.shape[0])
            bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            ok, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, settings["quality"]])
            if not ok:
                raise InputError(f"{path}: frame {len(jpegs)} cannot be stored as JPEG")
            jpegs[frame_member(len(jpegs))] = Member(spool, at, len(jpeg), zlib.crc32(jpeg))
            at += out.write(jpeg)
    fitted, faults = fit_to_video(video, frames.size, len(jpegs))
    refuse(faults, f"{path}: ")
    tubes = [
        {"label": t.label, "person_id": t.person_id, "frames": t.frames.tolist(), "boxes": t.boxes.tolist()}
        for t in fitted.tubes
    ]
    meta = {
        "name": video.name, "width": fitted.width, "height": fitted.height, "stored": stored, "fps": frames.fps,
        "n_frames": len(jpegs), "tubes": tubes, "made_from": _made_from(video, path, settings),
    }  # fmt: skip
    if fitted.key_frames is not None:
        meta["key_frames"] = fitted.key_frames[fitted.key_frames < len(jpegs)].tolist()
    return meta, jpegs, faults


def _stored(shard: Path) -> dict[str, Sample]:
    """The samples of a shard by name, none where it is missing or damaged."""
    try:
        return {meta["name"]: (meta, members) for meta, members in read_samples(shard, "shard")}
    except InputError:
        return {}


def _fitting(shard: Path, videos: list[tuple[Video, Path]], settings: dict) -> list[str]:
    """The videos of a shard that need not be made again, since their files, annotation and settings are the same and
    their frames not damaged."""
    stored, fit = _stored(shard), []
    for video, path in videos:
        sample = stored.get(video.name, ({}, {}))
        if sample[0].get("made_from") == _made_from(video, path, settings):
            with contextlib.suppress(InputError):
                verify_sample(sample)
                fit.append(video.name)
    return fit


def make_shards(
    project: Project,
    subset: str,
    folder: Path,
    image_size: int = 0,
    quality: int = 95,
    per_shard: int = 64,
    workers: int | None = None,
    skip_bad: bool = False,
) -> dict[str, str]:
    """Write `folder/shard-000000.tar`, ... and `folder/index.json`; give the videos left out and why.

    `workers` videos are decoded and encoded at a time (None: as many as there are cores). Existing shards keep their
    videos that fit, so a run that was stopped goes on. Raises InputError at the first video that cannot be used; with
    `skip_bad` it is left out instead.
    """
    settings = {"image_size": image_size, "quality": quality, **project_settings(project)}
    listed = SubsetVideos(project, subset, skip_bad=skip_bad)
    bad = dict(listed.bad)
    annotated = read_annotations(project, listed.paths, bad if skip_bad else None)
    videos = [(video, listed.paths[name]) for name, video in annotated.items()]
    groups = [videos[i : i + per_shard] for i in range(0, len(videos), per_shard)]
    files = [f"shard-{i:06d}.tar" for i in range(len(groups))]
    spools, faults = folder / ".work", []
    with lock(folder, "make_shards"):
        remove_parts(folder)
        shutil.rmtree(spools, ignore_errors=True)
        spools.mkdir()
        shards = progress(zip(files, groups, strict=True), desc="existing shards", unit="shard", delay=5, leave=False)
        kept = [_fitting(folder / file, group, settings) for file, group in shards]
        index = {
            "dataset": project.name, "subset": subset, "settings": settings, "labels": project.labels,
            "shards": files, "skipped": bad,
        }  # fmt: skip
        cv2.setNumThreads(0)
        pool = ThreadPoolExecutor(workers or available_cores(), "encoder")  # its work runs outside Python's lock
        encoded = {
            video.name: pool.submit(encode_video, video, path, spools / safe_key(video.name), settings)
            for group, fit in zip(groups, kept, strict=True)
            for video, path in group
            if video.name not in fit
        }
        done = len(videos) - len(encoded)
        bar = progress(total=len(videos), initial=done, desc=f"shards of {subset}", unit="video")
        try:
            for file, group, fit in zip(files, groups, kept, strict=True):
                samples, stored = [], _stored(folder / file)
                for video, _ in group:
                    if video.name in fit:
                        samples.append(stored[video.name])
                        continue
                    try:
                        meta, jpegs, video_faults = encoded.pop(video.name).result()
                        samples.append((meta, jpegs))
                        faults += video_faults
                    except InputError as error:
                        if not skip_bad:
                            raise InputError(f"{error}; repair it, or leave such videos out with --skip_bad") from None
                        bad[video.name] = str(error)
                    bar.update()
                names = [meta["name"] for meta, _ in samples]
                if names and names == fit == [*stored]:  # all others are as bad as when it was written
                    continue
                (folder / "index.json").unlink(missing_ok=True)  # until the set is whole again
                write_tar(folder / file, samples)
                for name in names:
                    (spools / safe_key(name)).unlink(missing_ok=True)
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(spools, ignore_errors=True)
        if all(name in bad for name in annotated):
            raise InputError(f"{folder}: no video of subset {subset!r} can be used; {next(iter(bad.values()), '')}")
        write_sealed(folder / "index.json", index)
        for extra in set(folder.glob("shard-*.tar")) - {folder / name for name in files}:
            extra.unlink()
    print_warnings(str(folder), faults)
    return bad


def read_index(folder: str | Path) -> dict:
    """`index.json` of a folder of shards; InputError where it is missing, since the set is not whole, or damaged."""
    path = Path(folder) / "index.json"
    if not path.exists():
        raise InputError(f"{folder}: no whole set of shards here; write them with python -m datasets.make_shards")
    try:
        index = unseal(path.read_bytes())
        return {**index, "shards": list(index["shards"])}
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged index of shards ({error}); {REMEDY}") from None


def read_shards(folder: str | Path) -> Iterator[tuple[Path, dict, dict[str, Member]]]:
    """Each video of a folder of shards, in order: the shard, the sample's json, and where its frames lie.

    Raises InputError when the folder holds no whole set of shards.
    """
    folder, seen = Path(folder), set()
    for name in read_index(folder)["shards"]:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{folder / 'index.json'}: shard {str(name)[:40]!r} is not a file's name")
        for meta, members in read_samples(folder / name, "shard", REMEDY):
            if meta["name"] in seen:
                raise InputError(f"{folder / name}: video {meta['name'][:80]!r} is in another shard too; {REMEDY}")
            seen.add(meta["name"])
            yield folder / name, meta, members


def is_url(shards: object) -> bool:
    """Whether shards are streamed: a URL or a `pipe:` command, not a folder."""
    return isinstance(shards, str) and ("://" in shards or shards.startswith("pipe:"))


def shards_folder(shards_path: str | Path | None, project: Project, subset: str, data_root: str | Path) -> Path:
    """Where a subset's shards lie: `<shards_path>/<subset>`, by default under `<data_root>/<dataset>/shards`."""
    return Path(shards_path or Path(data_root) / project.name / "shards") / subset


def main() -> None:
    """The command line."""
    parser = Parser("Write a subset's videos and annotations as WebDataset shards.")
    parser.flag("data", "dataset", required=True, help="built-in data set, or path of a project file")
    parser.flag("data", "subset", required=True, help="subset of the project file, such as train or val")
    parser.flag("data", "data_root", default="data", help="folder of the built-in data sets")
    parser.flag("data", "skip_bad", action="store_true", help="leave out videos that cannot be used, and list them")
    parser.flag("output", "shards_path", help="folder to write <subset>/ in (default: <data_root>/<dataset>/shards)")
    parser.flag(
        "output", "image_size", type=count, default=0, help="longer side of larger frames in pixels (0: as it is)"
    )
    parser.flag("output", "quality", type=percent, default=95, help="JPEG quality, 1 to 100")
    parser.flag("output", "per_shard", type=positive_int, default=64, help="videos in a shard")
    parser.flag("output", "workers", type=positive_int, default=available_cores(), help="videos encoded at a time")
    args = parser.parse_args()
    if is_url(args.shards_path):
        raise InputError(f"--shards_path {args.shards_path}: shards are written to a folder; copy that to the server")
    project = load_project(args.dataset, args.data_root)
    folder = shards_folder(args.shards_path, project, args.subset, args.data_root)
    bad = make_shards(
        project, args.subset, folder, args.image_size, args.quality, args.per_shard, args.workers, args.skip_bad
    )
    tell_left_out(bad)
    print(f"{folder}: shards written")


if __name__ == "__main__":
    run(main)
