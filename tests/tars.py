"""Samples of arrays for tars."""

import io
from collections.abc import Mapping

import numpy as np


def as_members(columns: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Arrays as `utils.storage.tars.write_tar` takes them, encoded as `np.save` does."""
    members = {}
    for column, array in columns.items():
        data = io.BytesIO()
        np.save(data, array)
        members[f"{column}.npy"] = data.getvalue()
    return members
