"""Fine-tuning of `transformers`' detectors by their own losses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (requirements-hf.txt)")

import train_detr
from models import hf_detector
from models.detectors import open_detector
from models.hf_detector import HFTraining
from tests.hf_models import SOME_SLOW
from tests.stages import Stages
from utils.misc import InputError

pytestmark = pytest.mark.slow  # an optional library

CPU = torch.device("cpu")


def two_images(people: list[int]) -> tuple[torch.Tensor, list[dict]]:
    """uint8 images with bright boxes for people, and their targets."""
    images = torch.full((len(people), 3, 64, 64), 40, dtype=torch.uint8)
    targets = []
    for image, n in zip(images, people, strict=True):
        centres = torch.tensor([[0.3, 0.5], [0.7, 0.4]])[:n]
        for x, y in (centres * 64).round().int().tolist():
            image[:, y - 16 : y + 16, x - 8 : x + 8] = 220
        targets.append({"boxes": torch.cat([centres, torch.tensor([[0.25, 0.5]] * n).reshape(-1, 2)], 1)})
    return images, targets


@pytest.mark.parametrize("family", SOME_SLOW)
def test_each_family_s_loss_falls_and_takes_images_without_people(tiny: dict[str, Path], family: str) -> None:
    torch.manual_seed(0)
    detector = hf_detector.load(f"hf:{tiny[family]}")
    training = HFTraining(detector).train()
    optimizer = torch.optim.AdamW(training.parameters(), lr=2e-3)
    totals = []
    for step in range(12):
        images, targets = two_images([2, 1] if step else [0, 0])
        with torch.autocast("cpu", torch.bfloat16, enabled=step == 1):
            losses = training(*detector.prepare(images), targets)
        assert losses["loss"].isfinite() and losses["loss"].dtype == torch.float32
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(training.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        totals.append(float(losses["loss"].detach()))
    assert np.mean(totals[-3:]) < 0.9 * np.mean(totals[2:4]), totals


def test_a_tiny_one_learns_is_resumed_exactly_and_serves_the_later_stages(
    tiny: dict[str, Path], stages: Stages
) -> None:
    flags = ["--detr", f"hf:{tiny['d_fine']}", "--lr", "2e-3", "--clips_per_video", "4", "--batch_size", "8"]
    stages.run("train_detr", *flags, "--epochs", "3", "--ex_name", "whole")
    folder = stages.checkpoint / "synthetic" / "whole" / "detr"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"] and 0 <= lines[-1]["val_AP50"] <= 1
    stages.run("train_detr", *flags, "--epochs", "1", "--ex_name", "parts")
    stages.run("train_detr", *flags, "--epochs", "3", "--ex_name", "parts", "--resume")
    paths = [folder / "epoch_3.pth", folder.parents[1] / "parts" / "detr" / "epoch_3.pth"]
    whole, parts = (torch.load(path, weights_only=True)["model"] for path in paths)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())

    detector = open_detector(paths[0], CPU)
    assert detector.person_label == 1 and "d_fine-64x64" in detector.key
    assert detector.weights != open_detector(f"hf:{tiny['d_fine']}", CPU).weights
    stages.run("train_detr", "--detr", paths[0], "--epochs", "1", "--ex_name", "further", "--batch_size", "8")
    assert (folder.parents[1] / "further" / "detr" / "epoch_1.pth").is_file()


@pytest.mark.parametrize("flag", [["--dilation"], ["--eos_coef", "0.3"], ["--id_loss_coef", "1"], ["--pad_square"]])
def test_flags_of_detr_alone_are_one_line(tiny: dict[str, Path], stages: Stages, flag: list[str]) -> None:
    with pytest.raises(InputError, match=f"{flag[0]}: not with hf:"):
        stages.run("train_detr", "--detr", f"hf:{tiny['rt_detr']}", *flag)


def test_flags_of_detr_alone_in_a_preset_are_refused_too() -> None:
    parser = train_detr.make_parser()
    parser.set_defaults(pad_square=True, no_aux_loss=True)
    args = parser.parse_args(["--dataset", "own", "--detr", "hf:name", "--preset", "published"])
    wanted = r"--pad_square, --no_aux_loss: not with hf:name.*--preset_except pad_square no_aux_loss$"
    with pytest.raises(InputError, match=wanted):
        train_detr.refuse_flags(args, ["pad_square", "box_overlap", "no_aux_loss"])
