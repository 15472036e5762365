"""X3D-XS: PyTorchVideo's answers, and where weights come from."""

import json

import numpy as np
import pytest
import torch

from models import x3d
from models.x3d import X3D_FRAMES, X3D_SIZE, X3D_WIDTH, load_x3d, normalize_x3d, x3d_xs
from tests.fill import fill_state_dict
from utils.misc import InputError

NOWHERE = "http://127.0.0.1:9/X3D_XS.pyth"  # nothing listens on the discard port


@pytest.fixture(scope="module")
def filled():
    return fill_state_dict(x3d_xs()).eval()


@pytest.fixture(scope="module")
def state(filled):
    return filled.state_dict()


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty folder in place of torch hub's cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def same(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in state)


def test_names_and_shapes_are_pytorchvideos(fixtures, state):
    wanted = json.loads((fixtures / "x3d_xs_state_dict_keys.json").read_text())
    assert {name: list(value.shape) for name, value in state.items()} == wanted


@torch.inference_mode()
def test_answers_are_pytorchvideos(fixtures, filled):
    wanted = np.load(fixtures / "x3d_xs_outputs.npz")
    rs = np.random.RandomState(0)
    x182 = torch.from_numpy(rs.standard_normal((2, 3, 4, 182, 182)).astype(np.float32))
    x160 = torch.from_numpy(rs.standard_normal((1, 3, 4, 160, 160)).astype(np.float32))
    body = filled.blocks[:5](x182)
    np.testing.assert_allclose(body, wanted["blocks0to4_182"], atol=1e-4)
    np.testing.assert_allclose(filled.blocks[5].pool(body), wanted["pool_182"], atol=1e-4)
    np.testing.assert_allclose(filled(x160), wanted["logits_160"], atol=1e-4)
    np.testing.assert_allclose(filled.features(x182), wanted["pool_182"].mean((2, 3, 4)), atol=1e-4)


@torch.inference_mode()
def test_any_aspect_ratio_gives_one_vector_a_clip(filled):
    clips = torch.randn(2, 3, X3D_FRAMES, 129, 161)
    features = filled.features(clips)
    assert features.shape == (2, X3D_WIDTH)
    torch.testing.assert_close(features[1:], filled.features(clips[1:]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(filled(clips), filled.blocks[5].proj(features))


def test_the_input_is_normalised_as_published():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalize_x3d(images), torch.tensor([-2.0, -10 / 9, 22 / 9]))
    assert images.tolist() == [0, 51, 255]
    assert normalize_x3d(torch.zeros(1, 3, X3D_FRAMES, X3D_SIZE, 240, dtype=torch.uint8)).dtype == torch.float32


@pytest.mark.parametrize("wrap", [lambda state: {"model_state": state}, lambda state: state])
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_given_file_is_used_whatever_its_form(tmp_path, state, wrap, as_zip):
    path = tmp_path / "mine.pyth"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=as_zip)
    model = load_x3d(str(path), tmp_path / "checkpoint")
    assert same(model, state) and not model.training


def test_the_hubs_copy_comes_before_a_download(tmp_path, hub, state, monkeypatch):
    monkeypatch.setattr(x3d, "X3D_URL", NOWHERE)
    hub.mkdir(parents=True)
    torch.save({"model_state": state}, hub / "X3D_XS.pyth")
    assert same(load_x3d(None, tmp_path / "checkpoint"), state)
    assert not (tmp_path / "checkpoint").exists()


def test_the_file_is_downloaded_once(tmp_path, server, state, monkeypatch):
    url, folder = server
    monkeypatch.setattr(x3d, "X3D_URL", url + "X3D_XS.pyth")
    torch.save({"model_state": state}, folder / "X3D_XS.pyth")
    root = tmp_path / "checkpoint"
    assert same(load_x3d(None, root), state)
    kept = (root / "x3d" / "X3D_XS.pyth").read_bytes()
    assert kept == (folder / "X3D_XS.pyth").read_bytes()
    monkeypatch.setattr(x3d, "X3D_URL", NOWHERE)
    assert same(load_x3d(None, root), state)


def test_a_given_file_that_is_missing_is_not_replaced(tmp_path, hub, state):
    hub.mkdir(parents=True)
    torch.save(state, hub / "X3D_XS.pyth")
    with pytest.raises(InputError, match=r"none\.pyth: no such X3D-XS weights"):
        load_x3d(str(tmp_path / "none.pyth"), tmp_path)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: b"no weights", "x3d.pyth: not a readable X3D-XS weights"),
        (lambda s: [1, 2], "x3d.pyth: not weights; it holds a list"),
        (lambda s: {"model": s, "config": {}, "epoch": 1}, r"x3d.pyth: not weights; it holds 3 items \(model,"),
        (lambda s: {"model_state": 3}, "x3d.pyth: not weights; it holds a int"),
        (lambda s: without(s, "blocks.0.norm.bias"), "another architecture: blocks.0.norm.bias is missing; it holds"),
        (lambda s: {"fc.weight": torch.zeros(2)}, r"blocks.0.conv.conv_t.weight is missing;.* 1 item \(fc.weight"),
        (lambda s: s | {"fc.bias": torch.zeros(2)}, "fc.bias is not in this model"),
        (
            lambda s: {"model_state": x3d_xs(num_classes=5).state_dict()},
            r"blocks.5.proj.weight is \(5, 2048\), not \(400, 2048\)",
        ),
    ],
)
def test_files_that_do_not_fit_are_told_in_a_line(tmp_path, state, content, said):
    path, held = tmp_path / "x3d.pyth", content(state)
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        torch.save(held, path)
    with pytest.raises(InputError, match=said) as caught:
        load_x3d(path, tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
