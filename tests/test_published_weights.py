"""Weights of the method's public code, as bare state dicts, and of official DETR training."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from models.action_head import build_action_head, load_head, published_time_encoding
from models.detr import build_model
from models.head_types import HEAD_TYPES
from models.person_encoder import PersonEncoder, load_encoder
from models.published_weights import published_encoder, published_head
from scripts.import_published import main as import_published
from tests.fill import fill_array, fill_state_dict, load_detr
from tests.stages import LOOSE, QUIET, Stages
from tests.test_outdated_tracks import own_project
from utils.misc import InputError

SMALL = {"backbone": "resnet18", "stages": 3, "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2}
SMALL |= {"dim_feedforward": 64, "num_queries": 5, "dilation": True}


def names_of(fixtures: Path, part: str) -> dict[str, dict]:
    return json.loads((fixtures / "published_state_dicts.json").read_text())[part]


def published_file(path: Path, names: dict[str, dict], base: int) -> Path:
    """A file of the public code: its names and shapes, filled by ours."""
    state = {}
    for name, entry in names.items():
        shape = tuple(entry["shape"])
        if entry["ours"] is None:
            state[name] = published_time_encoding(torch.arange(shape[0]), shape[1], base)
        else:
            state[name] = torch.from_numpy(fill_array(entry["ours"], shape))
    torch.save(state, path)
    return path


@pytest.mark.parametrize("skip", [False, True])
def test_a_person_encoder_of_the_public_code_loads(fixtures: Path, tmp_path: Path, skip: bool) -> None:
    path = published_file(tmp_path / "psn_encoder.pth", names_of(fixtures, "person_encoder"), 100)
    encoder, settings = published_encoder(path, skip)
    wanted, queries = fill_state_dict(PersonEncoder(skip=skip)).eval(), torch.randn(3, 256)
    assert torch.equal(encoder(queries), wanted(queries)) and settings["skip"] == skip


@pytest.mark.parametrize("head_type", HEAD_TYPES)
@pytest.mark.parametrize(("dataset", "base", "n"), [("jhmdb21", 100, 21), ("ucf101-24", 800, 24)])
def test_an_action_head_of_the_public_code_loads(
    fixtures: Path, tmp_path: Path, dataset: str, base: int, n: int, head_type: str
) -> None:
    path = published_file(tmp_path / "head.pth", names_of(fixtures, f"action_head/{dataset}/{head_type}"), base)
    if HEAD_TYPES[head_type].frames:
        with pytest.raises(InputError, match="say with --head_type"):
            published_head(path)
    head = published_head(path, head_type)
    frame_d = 2048 if HEAD_TYPES[head_type].frames else 0
    cycle = base if HEAD_TYPES[head_type].time else 100
    wanted = build_action_head(head_type, n, time_cycle=cycle, frame_d=frame_d, time_encoding="published")
    assert head.config == wanted.config
    fill_state_dict(wanted)
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in head.state_dict().items())
    if head_type != "vanilla":
        with pytest.raises(InputError, match=f"a head of type {head_type}, not vanilla|x3d or res"):
            published_head(path, "vanilla")


@pytest.mark.parametrize("fault", ["name", "shape", "table", "whole", "text"])
def test_other_files_are_one_line(fixtures: Path, tmp_path: Path, fault: str) -> None:
    path = published_file(tmp_path / "head.pth", names_of(fixtures, "action_head/jhmdb21/time_ecd:cat"), 100)
    state = torch.load(path, weights_only=True)
    if fault == "name":
        state["head.scale"] = state.pop("head.bias")
    if fault == "shape":
        state["head.bias"] = state["head.bias"][:3]
    if fault == "table":
        state["pos_encoder.pe"] = state["pos_encoder.pe"].flip(1)
    torch.save({"model": state} if fault == "whole" else 3 if fault == "text" else state, path)
    with pytest.raises(InputError, match=r"head\.pth: ") as refusal:
        published_head(path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match=r"not a person encoder|not a state dict"):
        published_encoder(path, False)
    with pytest.raises(InputError, match="import_published"):
        load_head(path)


@pytest.mark.parametrize("form", ["official", "bare", "parallel"])
def test_detectors_of_official_training_and_bare_ones_load(tmp_path: Path, form: str, capsys) -> None:
    detr = fill_state_dict(build_model(SMALL)[0])
    state = detr.state_dict()
    args = Namespace(lr=1e-4, backbone="resnet18", nheads=4, dilation=True, position_embedding="sine", masks=False)
    held = {"model": state, "optimizer": {"state": {}}, "lr_scheduler": {"last_epoch": 3}, "epoch": 3, "args": args}
    held = {"official": held, "bare": state, "parallel": {f"module.{name}": value for name, value in state.items()}}[
        form
    ]
    torch.save(held, tmp_path / "checkpoint.pth")
    loaded, config = load_detr(tmp_path / "checkpoint.pth")
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    note = capsys.readouterr().err
    if form == "official":
        assert (config["nheads"], config["dilation"], note) == (4, True, "")
    else:
        assert not config["dilation"] and note.count("\n") == 1 and "dc5" in note
        (tmp_path / "checkpoint.pth").rename(tmp_path / "detr-dc5.pth")
        assert load_detr(tmp_path / "detr-dc5.pth")[1]["dilation"] and not capsys.readouterr().err


def test_official_training_with_another_position_embedding_is_refused(tmp_path: Path) -> None:
    args = Namespace(position_embedding="learned")
    torch.save({"model": build_model(SMALL)[0].state_dict(), "args": args}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match="position_embedding='learned': choose from sine"):
        load_detr(tmp_path / "checkpoint.pth")


def test_imported_weights_go_through_the_later_stages(stages: Stages, tmp_path: Path, monkeypatch) -> None:
    """The chain's own weights, written as the public code would, give the same tracks and action tubes."""
    detr = stages.folder("one") / "detr" / "epoch_1.pth"
    encoder, _, _ = load_encoder(stages.folder("one") / "encoder" / "epoch_2.pth")
    stages.run("train_action_head", "--qmm_name", "one", "--head_type", "time_ecd:cat", "--epochs", 1, *LOOSE)
    trained = stages.folder("one") / "head" / "time_ecd:cat" / "epoch_1.pth"
    head = torch.load(trained, weights_only=True)
    theirs = {
        f"psn_query_embed.layers.{int(n.split('.')[1]) // 3}.{n.split('.')[2]}": v
        for n, v in encoder.state_dict().items()
    }
    torch.save(theirs, tmp_path / "encoder.pth")
    renames = {"transformer.": "transformer_encoder.", "classify.": "head."}
    theirs = {"pos_encoder.pe": published_time_encoding(torch.arange(5000), 32, head["config"]["head"]["time_cycle"])}
    for name, value in head["model"].items():
        old = next(prefix for prefix in renames if name.startswith(prefix))
        theirs[name.replace(old, renames[old], 1)] = value
    torch.save(theirs, tmp_path / "head.pth")

    def run(*flags: object) -> None:
        words = ["--dataset", "synthetic", "--data_root", stages.data, "--checkpoint_root", stages.checkpoint, *QUIET]
        words += [
            "--qmm_name",
            "public",
            "--encoder",
            tmp_path / "encoder.pth",
            "--head",
            tmp_path / "head.pth",
            *LOOSE,
        ]
        monkeypatch.setattr(sys, "argv", ["import_published.py", *map(str, [*words, *flags])])
        import_published()

    for flags, said in (((), "say --is_skip"), (("--no-is_skip",), "name it with --detr")):
        with pytest.raises(InputError, match=said):
            run(*flags)
    run("--no-is_skip", "--detr", detr, "--load_epoch", 2)
    with pytest.raises(InputError, match="is there already"):
        run("--no-is_skip", "--detr", detr, "--load_epoch", 2)
    flags = ("--qmm_name", "public", *LOOSE)
    stages.run("eval_qmm", *flags)
    measured = []
    for name in ("one", "public"):
        head = ("--head_type", "time_ecd:cat", "--min_tube_length", 1, "--topk", 9, "--tiou_th", 0.05)
        stages.run("eval_map", "--qmm_name", name, *LOOSE, *head)
        (result,) = [r for r in stages.results(name, "eval_map") if r["args"]["topk"] == 9]
        measured.append(result["metrics"])
    assert measured[0] == measured[1] and measured[0]["v-mAP@0.05"] > 0

    run("--no-is_skip", "--detr", detr, "--qmm_name", "strided", *own_project(stages, stride=2))
    head = torch.load(stages.folder("strided") / "head" / "time_ecd:cat" / "epoch_20.pth", weights_only=True)
    assert head["config"]["settings"]["sampling"]["stride"] == 2  # or eval_map.py would refuse it
