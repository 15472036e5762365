"""Which decoder layer gives the query vectors, and which class of a detector is the person."""

from argparse import Namespace
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from models.action_head import load_head
from models.detectors import Detector, open_detector
from models.detr import build_model
from models.hf_detector import person_class
from models.person_encoder import load_encoder
from models.person_queries import detector_of
from models.position_encoding import sine_position_encoding
from models.weights import SHIPPED
from tests.fill import fill_state_dict, filled_detr
from utils.misc import InputError
from utils.storage.files import load_torch, save_torch

CPU = torch.device("cpu")
SMALL = {"backbone": "resnet18", "stages": 3, "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 3}
SMALL |= {"dim_feedforward": 64, "num_queries": 6, "dropout": 0.0, "image_size": 64, "num_classes": 5}
FRAMES = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (2, 3, 48, 64)).astype(np.uint8))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of five classes, three decoder layers, as a checkpoint of this project."""
    path = tmp_path_factory.mktemp("detr") / "epoch_1.pth"
    state = fill_state_dict(build_model(SMALL)[0]).state_dict()
    torch.save({"model": state, "config": SMALL, "epoch": 1}, path)
    return path


def detections(detector: Detector):
    (_, fetch), *_ = detector.start([FRAMES], (64, 48), 0.0)
    return fetch()


def without_config(path: Path, folder: Path, n_classes: int) -> Path:
    """The checkpoint as official training leaves it, with the first `n_classes` classes (and "no object")."""
    state = torch.load(path, weights_only=True)["model"]
    for name in ("class_embed.weight", "class_embed.bias"):
        state[name] = torch.cat([state[name][:n_classes], state[name][-1:]])
    args = Namespace(backbone="resnet18", nheads=4, dilation=False, num_classes=n_classes)
    torch.save({"model": state, "optimizer": {}, "lr_scheduler": {}, "epoch": 3, "args": args}, folder / "official.pth")
    return folder / "official.pth"


def test_queries_of_each_layer_are_the_decoder_s_own_outputs(small: Path) -> None:
    last = open_detector(small, CPU)
    source = last.detr.input_proj(last.detr.backbone(last.inputs(FRAMES)[0]))
    position = sine_position_encoding(torch.ones(1, *source.shape[-2:], dtype=torch.bool), source.shape[1])
    with torch.inference_mode():
        states = last.detr.transformer(source, None, last.detr.query_embed.weight, position)
    for layer in (1, 2, 3):
        detector = open_detector(small, CPU, query_layer=layer)
        found, wanted = detections(detector), detections(last)
        np.testing.assert_allclose(found.queries, states[layer - 1].flatten(0, 1), atol=1e-5)
        assert layer == 3 or np.abs(found.queries - wanted.queries).max() > 0.1
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)  # the last layer's in any case
        np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-4)
        assert (detector.key == last.key) == (layer == 3) and detector.config()["query_layer"] == layer


@pytest.mark.slow
def test_published_queries_are_the_first_layer_s(shared: Path) -> None:
    oracle = np.load(shared / "oracles" / "published" / "published_detr_queries.npz")
    detr = filled_detr({"dilation": True})
    images = np.random.RandomState(int(oracle["random_state"])).standard_normal((2, 3, 128, 128)).astype(np.float32)
    detr.query_layer = 1
    with torch.inference_mode():
        out = detr(torch.from_numpy(images))
    np.testing.assert_allclose(out["queries"], oracle["queries_first"], atol=1e-4)
    for name in ("pred_logits", "pred_boxes"):
        np.testing.assert_allclose(out[name], oracle[name], atol=1e-4)


def test_a_layer_that_is_not_there_or_not_the_encoder_s_is_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--query_layer 4: .* has 3 decoder layers"):
        open_detector(small, CPU, query_layer=4)
    args = Namespace(detr=None, image_size=0, pad_square=False, amp="off", compile=False, detr_batch=8)
    args.checkpoint_root, args.query_layer, args.person_label = tmp_path, None, None
    known = open_detector(small, CPU, query_layer=1, person_label=3).config()
    assert detector_of(args, CPU, known).config() == known
    args.query_layer = 3
    with pytest.raises(InputError, match="--query_layer 3: the encoder was trained with queries of decoder layer 1"):
        detector_of(args, CPU, known)
    former = {"encoder": {}, "detector": {name: known[name] for name in ("source", "weights", "image_size")}}
    save_torch(tmp_path / "encoder.pth", {"model": {}, "config": former, "epoch": 1})  # of before the flag
    with pytest.raises(InputError, match="or a former one; make it with train_qmm"):
        load_encoder(tmp_path / "encoder.pth")


@pytest.mark.parametrize(
    ("kind", "load", "part", "key"),
    [
        ("encoder", load_encoder, ("encoder",), "skip"),
        ("encoder", load_encoder, ("detector",), "weights"),
        ("encoder", load_encoder, (), "detector"),
        ("head", load_head, ("head",), "nhead"),  # whose default would load too, and answer something else
        ("head", load_head, ("settings",), "sim_th"),
        ("head", load_head, ("settings", "detector"), "key"),
        ("head", load_head, (), "frames"),
    ],
)
def test_a_checkpoint_without_one_of_its_settings_is_one_line(
    tmp_path: Path, kind: str, load: Callable, part: tuple[str, ...], key: str
) -> None:
    checkpoint = load_torch(SHIPPED / "synthetic" / f"{kind}.pth")
    save_torch(tmp_path / "edited.pth", checkpoint)
    load(tmp_path / "edited.pth")
    del reduce(dict.__getitem__, part, checkpoint["config"])[key]
    save_torch(tmp_path / "edited.pth", checkpoint)
    with pytest.raises(InputError, match=rf"edited\.pth: its config has no {'.'.join([*part, key])}"):
        load(tmp_path / "edited.pth")


def test_the_person_s_label_is_that_of_the_flag(small: Path) -> None:
    plain = open_detector(small, CPU)
    probabilities = plain.detr(*plain.inputs(FRAMES))["pred_logits"].detach().softmax(-1)
    for label in (0, 1, 4):
        detector = open_detector(small, CPU, person_label=label)
        np.testing.assert_allclose(detections(detector).scores, probabilities[..., label].flatten(), atol=1e-6)
    assert open_detector(small, CPU, person_label=1).key == open_detector(small, CPU).key != detector.key


@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_a_detector_that_does_not_say_who_is_a_person_is_asked(small: Path, tmp_path: Path, n_classes: int) -> None:
    path = without_config(small, tmp_path, n_classes)
    with pytest.raises(InputError, match=rf"label.* 0 to {n_classes - 1}.*--person_label") as refusal:
        open_detector(path, CPU)
    assert "\n" not in str(refusal.value)
    assert open_detector(path, CPU, person_label=0).config()["person_label"] == 0
    with pytest.raises(InputError, match=f"has no label {n_classes}"):
        open_detector(path, CPU, person_label=n_classes)


def test_a_label_of_zero_is_a_label() -> None:
    labels = {0: "pedestrian", 1: "person"}
    assert [person_class(labels, wanted, "a") for wanted in (None, 0, "0", "pedestrian", 1)] == [1, 0, 0, 0, 1]
    with pytest.raises(InputError, match=r"a: has no class 'person'.*\(0 pedestrian\)"):
        person_class({0: "pedestrian"}, None, "a")


def test_queries_of_a_dilated_backbone_are_not_those_of_a_guessed_one(small: Path, tmp_path: Path, capsys) -> None:
    """A bare state dict whose name says "DC5" only later has a query cache of its own."""
    state = torch.load(small, weights_only=True)["model"]
    names = ("detr-resnet18-ucf.pth", "bare-DC5.pth")
    for name in names:
        torch.save(state, tmp_path / name)
    guessed, dilated = (open_detector(tmp_path / name, CPU, person_label=1) for name in names)
    assert "does not say whether its backbone is dilated" in capsys.readouterr().err
    assert guessed.key != dilated.key and guessed.weights != dilated.weights == open_detector(small, CPU).weights
    assert np.abs(detections(guessed).queries - detections(dilated).queries).max() > 1e-3
