"""Ground-truth tubes of a data set, by video."""

from collections.abc import Mapping

from utils.box_ops import Tube


def make_gt_tubes(dataset: str, subset: str, params: Mapping | None = None) -> dict[str, list[Tube]]:
    """Video name -> its annotated tubes, for every video of the subset (an empty list where there is nobody).

    `dataset`: a built-in name or the path of a project file (or a `Project`). `params`: `data_root` and
    fields of the project file to replace. InputError as `datasets.annotations.load_videos`.
    """
    # This is the one place where utils reaches up: the function's name is public, its work is the data sets'.
    from datasets.annotations import load_videos
    from datasets.project import load_project

    fields = dict(params or {})
    project = load_project(dataset, fields.pop("data_root", "data"), fields)
    videos, _ = load_videos(project, subset)
    return {video.name: video.tubes for video in videos}
