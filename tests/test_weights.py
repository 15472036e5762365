"""Weights by name, by file and by download, and what is said when they do not fit."""

import hashlib
import json
import os

import pytest
import torch
from torch import nn

from models import weights
from models.detr import DETR_CONFIG, build_model
from models.weights import download, infer_config, load_weights, weights_hash
from tests.fill import SMALL, fill_state_dict, load_detr
from utils.misc import InputError

NOWHERE = "http://127.0.0.1:9/"  # nothing listens on the discard port


@pytest.fixture(scope="module")
def small_state():
    return fill_state_dict(build_model(SMALL)[0]).state_dict()


def test_our_checkpoint_comes_back_with_its_config(tmp_path, small_state):
    path = tmp_path / "epoch_3.pth"
    torch.save({"model": small_state, "config": SMALL, "epoch": 3}, path)
    detr, config = load_detr(path)
    assert config == DETR_CONFIG | SMALL
    assert not detr.training
    assert all(torch.equal(value, small_state[name]) for name, value in detr.state_dict().items())


def test_an_official_file_tells_its_architecture_by_shapes(tmp_path, fixtures):
    for name, entries in json.loads((fixtures / "detr_state_dict_keys.json").read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in entries.items()}
        config = infer_config(state, f"{name}.pth")
        backbone = {"backbone": "resnet101" if "r101" in name else "resnet50", "dilation": "dc5" in name}
        assert config == DETR_CONFIG | backbone, name


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_small_architectures_are_told_by_shapes_too(backbone):
    wanted = DETR_CONFIG | SMALL | {"backbone": backbone, "nheads": 8}  # heads leave no trace in shapes
    with torch.device("meta"):
        state = build_model(wanted)[0].state_dict()
    assert infer_config(state) == wanted


def test_official_weights_are_downloaded_once_and_verified(tmp_path, server, monkeypatch, small_state):
    url, folder = server
    state = {key: value for key, value in small_state.items() if "num_batches" not in key}
    torch.save({"model": state}, folder / "made.pth")
    digest = hashlib.sha256((folder / "made.pth").read_bytes()).hexdigest()[:8]
    name = f"detr-small-{digest}.pth"
    (folder / "made.pth").rename(folder / name)
    monkeypatch.setitem(weights.OFFICIAL, "small", name)
    root = tmp_path / "checkpoint"
    monkeypatch.setattr(weights, "OFFICIAL_URL", url)
    first = load_detr("small", root)
    assert first[1]["num_queries"] == 5
    monkeypatch.setattr(weights, "OFFICIAL_URL", NOWHERE)
    again = load_detr("small", root)
    assert weights_hash(first[0].state_dict()) == weights_hash(again[0].state_dict())
    kept = root / "detr" / name
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name}: damaged.*remove it"):
        load_detr("small", root)


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, server):
    url, folder = server
    (folder / "a.pth").write_bytes(os.urandom(3_000_000))
    with pytest.raises(InputError, match=r"invalid hash value \(expected .00000000"):
        download(url + "a.pth", tmp_path / "kept" / "a.pth", "00000000")
    assert not [path for path in (tmp_path / "kept").iterdir() if not path.name.endswith(".lock")]


def test_without_network_one_line_says_where_the_file_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "OFFICIAL_URL", NOWHERE)
    with pytest.raises(InputError) as caught:
        load_detr("coco-r101-dc5", tmp_path)
    told = str(caught.value)
    assert str(tmp_path / "detr" / "detr-r101-dc5-a2e86def.pth") in told and "refused" in told and "\n" not in told


def test_a_file_that_the_server_lacks(tmp_path, server):
    with pytest.raises(InputError, match="not found"):
        download(server[0] + "none.pth", tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a checkpoint", "detr.pth: not a readable detector checkpoint"),
        ({"model": {"fc1.weight": torch.zeros(2)}, "config": {}}, "not a detector.*1 item .fc1.weight"),
        ([1, 2], "not a detector.*a list"),
        ({"model": {"query_embed.weight": torch.zeros(4, 8)}}, "detr.pth: not a detector.*1 item"),
        ({"model": {"query_embed.weight": 3}, "config": SMALL}, "detr.pth: not a detector"),
        ({"model": {}, "config": 3}, "detr.pth: not a detector"),
        ({"model": {"query_embed.weight": torch.zeros(4)}}, "detr.pth: not a detector"),
        ({"model": build_model(SMALL)[0].state_dict(), "config": {"wide": 3}}, "detr.pth.*'wide'"),
    ],
)
def test_files_that_are_no_detector_are_named(tmp_path, content, said):
    path = tmp_path / "detr.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=said):
        load_detr(path)


class Unknown:
    """A class that no checkpoint may bring along."""


@pytest.mark.parametrize("as_zip", [True, False])
def test_python_objects_are_named_without_advice_to_load_them(tmp_path, as_zip):
    path = tmp_path / "detr.pth"
    torch.save({"model": {}, "extra": Unknown()}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(InputError) as caught:
        load_detr(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "Unknown" in message and "state dict" in message
    assert not any(part in message for part in ("\n", "\x1b", "weights_only", "pickle"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_queries": 10**12}, "its config says num_queries=1000000000000, its weights 5"),
        ({"enc_layers": 10**12}, "its config says enc_layers"),
        ({"nheads": 0}, "nheads=0: must be a int of at least 1"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"backbone": "resnet50"}, "weights of another architecture: backbone.0.body.layer1.0"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_builds_nothing(tmp_path, small_state, change, said):
    path = tmp_path / "detr.pth"
    torch.save({"model": small_state, "config": SMALL | change, "epoch": 1}, path)
    with pytest.raises(InputError, match=said):
        load_detr(path)


def test_a_name_that_does_not_exist_lists_those_that_do(tmp_path):
    with pytest.raises(InputError, match="coco-r50-dc5"):
        load_detr("coco-r18", tmp_path)


def test_other_architectures_are_told_by_the_first_names_that_differ(small_state):
    detr = build_model(SMALL | {"hidden_dim": 64, "enc_layers": 2, "pre_norm": False})[0]
    with pytest.raises(InputError) as caught:
        load_weights(detr, small_state, "mine.pth")
    told = str(caught.value)
    assert told.startswith("mine.pth: weights of another architecture: transformer.encoder.layers.1.")
    assert "hidden_dim 32, 1 + 2 layers" in told and "resnet18 (3 stages)" in told and len(told) < 500
    with pytest.raises(InputError, match=r"weight is \(3, 2\), not \(2, 2\)"):
        load_weights(nn.Linear(2, 2), nn.Linear(2, 3).state_dict(), "mine.pth")


def test_the_hash_follows_names_shapes_and_bytes_only():
    state = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}
    same = dict(reversed([(name, value.clone()) for name, value in state.items()]))
    assert weights_hash(state) == weights_hash(same)
    others = [state | {"a": state["a"].view(2, 3)}, state | {"c": torch.tensor(4)}, {**state, "d": state["a"]}]
    others.append({"a2" if name == "a" else name: value for name, value in state.items()})
    others.append(state | {"a": state["a"].nextafter(torch.tensor(9.0))})
    assert len({weights_hash(s) for s in [state, *others]}) == 1 + len(others)
    picture = torch.randn(2, 3, 4, 5)
    assert weights_hash({"w": picture}) == weights_hash({"w": picture.contiguous(memory_format=torch.channels_last)})
