"""Linked people on disk: what `eval_qmm.py` writes and the later stages read.

A tar, one sample a video. Rows of its arrays are linked queries, person after person, each by frame: `frame` int64,
`boxes` float32 (M, 4) xyxy pixels, `scores` float32 person scores, `queries` float32 (M, d) of DETR's decoder,
`features` float32 (M, d) of the person encoder, `labels` int64 actions ("no action" is the index after the last
label). Its json holds the video's `n_frames`, `width`, `height`, `fps`, the people's `lengths` in rows, and the
`settings` it was made with.
"""

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.box_ops import Tube
from utils.misc import InputError, counted
from utils.storage.files import epoch_path
from utils.storage.tars import Rows, TarStore

if TYPE_CHECKING:
    from datasets.config import Project

NAMED = ("load_epoch", "psn_score_th", "sim_th", "filter_length", "link_cues")
"""The settings in a tar's name; the others stand in its samples."""


def settings_name(settings: dict) -> str:
    """A tar's stem: the settings that the later stages ask for, e.g. epoch20-psn0.9-sim0.5-len8-feature."""
    epoch, psn, sim, length, cue = (settings[name] for name in NAMED)
    return f"epoch{epoch}-psn{psn:g}-sim{sim:g}-len{length}-{cue}"


def fill_linked_flags(args: Namespace, project: "Project", root: Path) -> None:
    """The data set's settings, and the last epoch under `root`, the run's folder, where a flag was left out."""
    link = "sim_th" if args.link_cues == "feature" else "iou_link_th"
    project.fill(args, psn_score_th="psn_score_th", sim_th=link, filter_length="filter_length")
    if args.load_epoch is None:
        newest = epoch_path(root / "encoder", None, "person encoder", "train_qmm.py")
        args.load_epoch = int(newest.stem.removeprefix("epoch_"))


def tar_path(args: Namespace, root: Path, subset: str) -> Path:
    """Where the linked people of a subset lie for the settings in `args`; `root` is the run's folder."""
    return root / "qmm_tubes" / subset / f"{settings_name(vars(args))}.tar"


def head_folder(args: Namespace, root: Path) -> Path:
    """The folder of an action head's checkpoints."""
    name = args.head_name or args.head_type + ("-iou" if args.link_cues == "iou" else "")
    return root / "head" / name


@dataclass(frozen=True)
class LinkedPerson:
    """One person of a video, followed: `frames` int64 (T,), `boxes` float32 (T, 4), `scores` float32 (T,), `labels`
    int64 (T,); `rows` is the slice of the video's arrays that it is."""

    video: str
    person_id: int
    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rows: slice

    def tube(self) -> Tube:
        """The person as a region, scored by the mean person score."""
        return Tube(self.frames, self.boxes, score=float(self.scores.mean()), person_id=self.person_id)


class LinkedPeople:
    """The linked people of a subset; queries and features are read where they are used.

    Videos in `bad` (name -> why) are left out, and those that could not be used when the tar was made are entered
    there. InputError when the tar is missing or damaged, was made with other settings than `asked` (its name and the
    setting are told), or holds such videos and no `bad` is given.
    """

    def __init__(
        self,
        path: str | Path,
        asked: dict | None = None,
        made_by: str = "eval_qmm.py",
        bad: dict[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            there = ", ".join(sorted(p.stem for p in self.path.parent.glob("*.tar"))) or "none"
            raise InputError(f"{path}: no linked people with these settings (there are: {there}); run {made_by}")
        self.store = TarStore(self.path, "tar of linked people")
        if self.store.bad and bad is None:
            n, why = counted(len(self.store.bad), "video"), next(iter(self.store.bad.values()))
            raise InputError(f"{path}: {n} could not be used, the first: {why}; leave them out with --skip_bad")
        if bad is not None:
            bad |= self.store.bad
        self.names = [name for name in self.store.names if name not in (bad or {})]
        if not self.names:
            raise InputError(f"{path}: holds no video that can be used; make it again with {made_by}")
        self.settings: dict = self._json(self.names[0])["settings"]
        for name, value in (asked or {}).items():
            if self.settings.get(name) != value:
                raise InputError(
                    f"{path}: was made with {name} {self.settings.get(name)}, not {value}; run {made_by} again"
                )
        if "detector" not in self.settings:
            raise InputError(f"{path}: does not say which detector it was made with; make it again with eval_qmm.py")
        self._arrays: tuple[str, dict[str, Rows]] = ("", {})

    def _json(self, name: str) -> dict:
        meta = self.store.json(name)
        if not {"settings", "lengths", "n_frames", "width", "height", "fps"} <= meta.keys():
            raise InputError(f"{self.path}: not a tar of linked people; make it again with eval_qmm.py")
        return meta

    def meta(self, name: str) -> dict:
        """A video's json."""
        return self._json(name)

    def arrays(self, name: str) -> dict[str, Rows]:
        """A video's arrays, not yet read; its checksums are compared when it is first asked for."""
        if self._arrays[0] != name:
            self._arrays = name, self.store.arrays(name)
        return self._arrays[1]

    def people(self, name: str) -> list[LinkedPerson]:
        """The video's people, without queries and features."""
        lengths, arrays = self._json(name)["lengths"], self.arrays(name)
        with contextlib.suppress(KeyError):
            columns = [arrays[column][:] for column in ("frame", "boxes", "scores", "labels")]
            if {len(column) for column in columns} == {sum(lengths)}:
                ends = np.cumsum(lengths).tolist()
                spans = [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]
                return [LinkedPerson(name, i, *(c[rows] for c in columns), rows) for i, rows in enumerate(spans)]
        raise InputError(f"{self.path}: the people of {name!r} do not fit their arrays; make it again with eval_qmm.py")

    def __iter__(self) -> Iterator[LinkedPerson]:
        for name in self.names:
            yield from self.people(name)

    def tubes(self) -> dict[str, list[Tube]]:
        """The people as regions by video."""
        return {name: [person.tube() for person in self.people(name)] for name in self.names}

    @property
    def width(self) -> int:
        """Width of a query."""
        return self.arrays(self.names[0])["queries"].shape[1]

    def queries(self, person: LinkedPerson) -> np.ndarray:
        """Decoder queries of a person, float32 (T, d)."""
        return self.arrays(person.video)["queries"][person.rows]
