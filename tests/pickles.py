"""The one place that makes pickles: as public data sets ship them, and hostile ones, for the tests of their reader."""

import pickle


def pickled(value: object, protocol: int = 2) -> bytes:
    """`value` as a pickle; by default of the protocol that the public annotations have."""
    return pickle.dumps(value, protocol)
