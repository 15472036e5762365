"""Progress bars that also read well in a file."""

import sys
from typing import Any

from tqdm import tqdm

ON_SCREEN, IN_FILE = 0.2, 30.0  # seconds between two updates


def progress(*args: Any, **options: Any) -> tqdm:
    """`tqdm` on stderr: redrawn in place on a terminal, a line now and then where the output is a file."""
    interval = ON_SCREEN if sys.stderr.isatty() else IN_FILE
    return tqdm(*args, **{"mininterval": interval, "maxinterval": interval, "dynamic_ncols": True, **options})
