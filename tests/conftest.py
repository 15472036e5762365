import functools
import http.server
import os
import threading
from pathlib import Path

import pytest
import torch

import datasets  # noqa: F401 (sets OpenCV's limit of pixels, which must happen before any test imports cv2)

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)  # small tensors; a second thread only waits where others work too

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations, clips and large oracle files, which a user's machine does not have."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data is not at {SHARED}")
    return SHARED


@pytest.fixture
def server(tmp_path):
    """A web server of the files in a folder: (its URL, the folder)."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
