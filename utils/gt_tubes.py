"""Ground-truth tubes by the names of a data set and a subset."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from utils.box_ops import Tube

if TYPE_CHECKING:
    from datasets.project import Project


def make_gt_tubes(
    dataset: "str | Project", subset: str, params: Mapping[str, object] | None = None
) -> dict[str, list[Tube]]:
    """The annotated tubes of every video of a subset, as annotated (never clipped); videos without tubes are keys too.

    `dataset` is a built-in data set's name, a project file's path or a `datasets.project.Project`. `params` may
    give `data_root` and replace fields of the project file. Tubes: `frames` int64 (T,) from 0, `boxes`
    float32 (T, 4) xyxy pixels, `label` an index of the project's labels or -1 for a person without action.
    Raises InputError as `load_project` and `read_annotations` do.
    """
    from datasets.annotations import read_annotations
    from datasets.project import Project, load_project

    project = dataset if isinstance(dataset, Project) else load_project(dataset, **(params or {}))
    return {name: video.tubes for name, video in read_annotations(project, project.split(subset)).items()}
