"""Tars of samples whose members are in memory."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from utils.storage.tars import whole_file, write_tar


def as_bytes(columns: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Arrays as `write_samples` takes them, encoded as `np.save` does."""
    members = {}
    for column, array in columns.items():
        data = io.BytesIO()
        np.save(data, array)
        members[f"{column}.npy"] = data.getvalue()
    return members


def write_samples(path: Path, samples: Iterable[tuple[dict, Mapping[str, bytes]]]) -> None:
    """Write a tar of samples: each one's json, and the content of its members by extension."""
    with TemporaryDirectory() as folder:
        stored = []
        for n, (meta, contents) in enumerate(samples):
            members = {}
            for extension, content in contents.items():
                file = Path(folder) / f"{n}.{extension}"
                file.write_bytes(content)
                members[extension] = whole_file(file)
            stored.append((meta, members))
        write_tar(path, stored)
