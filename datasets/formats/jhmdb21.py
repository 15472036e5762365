"""JHMDB21 as the ACT detector's `JHMDB-GT.pkl`: frames from 1, corners x1, y1, x2, y2 as stored, resolution (h, w)."""

from pathlib import Path

from datasets.formats.common import AnnotationFile, RawTube, RawVideo, box_array, whole_number, whole_numbers
from utils.safe_pickle import read_pickle

LISTS = ("train_videos", "test_videos")  # one list a split each; a file may lack them


def read(path: Path) -> AnnotationFile:
    """Read the ground truth of all videos, its labels and its lists of videos."""
    content = read_pickle(path, "annotation file")
    videos = {}
    for name, tubes_by_label in content["gttubes"].items():
        tubes = []
        for label, arrays in tubes_by_label.items():
            for rows in arrays:
                rows = box_array(rows, columns=5)
                tubes.append(RawTube(whole_numbers(rows[:, 0]) - 1, rows[:, 1:], whole_number(label)))
        height, width = content["resolution"][name]
        n_frames = whole_number(content["nframes"][name])
        videos[str(name)] = RawVideo(whole_number(width), whole_number(height), n_frames, tubes)
    lists = {key: [list(map(str, names)) for names in content[key]] for key in LISTS if key in content}
    return AnnotationFile(path, videos, [str(label) for label in content["labels"]], lists)
