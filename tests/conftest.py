import functools
import http.server
import os
import threading
from pathlib import Path

import pytest
import torch

import datasets  # noqa: F401 (sets OpenCV's limit of pixels, which must happen before any test imports cv2)
from datasets.config import Project
from datasets.make_shards import make_shards
from tests.stages import Stages, make_data

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a mistake in a test is no download
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


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A tiny synthetic data set, and the chain run on it once as `one`."""
    root = tmp_path_factory.mktemp("chain")
    make_data(root)
    stages = Stages(root / "data", root / "checkpoint")
    stages.chain("one")
    return stages


@pytest.fixture(scope="module")
def stages(finished_chain: Stages, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A copy of the finished chain, for one file's tests."""
    return finished_chain.copy(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of `tests.numbered_frames`."""
    from tests.numbered_frames import numbered_project  # once pytest has read its assertions

    return numbered_project(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="session")
def shards(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of `project`, three videos each, which no test changes."""
    folder = tmp_path_factory.mktemp("shards")
    assert make_shards(project, "val", folder, per_shard=3, workers=2) == {}
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of a tiny detector of `transformers` of each family."""
    from tests.hf_models import FAMILIES, save_tiny  # the library is optional

    root = tmp_path_factory.mktemp("hf")
    return {family: save_tiny(family, root / family) for family in FAMILIES}


@pytest.fixture
def server(tmp_path):
    """A web server of the files in a folder: (its URL, the folder)."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
