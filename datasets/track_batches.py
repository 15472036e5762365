"""Linked people in steps of many, padded in chunks of like length: what the action head trains on."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.storage.tracks import LinkedPeople, LinkedPerson


class LinkedTubes:
    """The linked people of a subset; `len` is their number. Queries are read where they are used.

    `features_of(person)` gives the features of a person's frames, float32 (T, f), for heads that need them.
    """

    def __init__(
        self, linked: LinkedPeople, seed: int, features_of: Callable[[LinkedPerson], np.ndarray] | None = None
    ) -> None:
        self.linked, self.seed, self.features_of = linked, seed, features_of
        self.people = list(linked)

    def __len__(self) -> int:
        return len(self.people)

    def chunks(self, which: Sequence[int], n: int) -> list[list[LinkedPerson]]:
        """The people `which` in `n` chunks, sorted by length so that little is padding; the last are empty where there
        are fewer people."""
        people = sorted((self.people[i] for i in which), key=lambda person: len(person.frames))
        return [[people[i] for i in part] for part in np.array_split(np.arange(len(people)), n)]

    def batch(self, people: Sequence[LinkedPerson]) -> dict[str, Tensor | None]:
        """People padded to the longest: `queries` float32 (B, T, d), `times` int64 (B, T) since each one's first frame,
        `labels` int64 (B, T), `padding` bool (B, T) True on padding, `features` float32 (B, T, f) or None."""
        longest = max(len(person.frames) for person in people)

        def padded(parts: list[np.ndarray]) -> Tensor:
            out = np.zeros((len(parts), longest, *parts[0].shape[1:]), parts[0].dtype)
            for row, part in zip(out, parts, strict=True):
                row[: len(part)] = part
            return torch.from_numpy(out)

        lengths = torch.tensor([len(person.frames) for person in people])
        return {
            "queries": padded([self.linked.queries(person) for person in people]),
            "times": padded([person.frames - person.frames[0] for person in people]),
            "labels": padded([person.labels for person in people]),
            "padding": torch.arange(longest) >= lengths[:, None],
            "features": None if self.features_of is None else padded([self.features_of(person) for person in people]),
        }
