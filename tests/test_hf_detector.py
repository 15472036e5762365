"""Detectors of `transformers` against the library's own image processor and post-processing, and in the stages."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (requirements-hf.txt)")
import transformers
from safetensors.torch import load_file, save_file

import predict
from models import hf_detector
from models.detectors import Detections, Detector, open_detector
from models.detr import build_model
from models.tube import link
from tests.fill import fill_state_dict
from tests.hf_models import FAMILIES, QUERIES, SOME_SLOW, detr_to_library, save_tiny
from tests.stages import Stages
from tests.test_performance_paths import HostReads
from utils.box_ops import box_cxcywh_to_xyxy
from utils.misc import InputError

pytestmark = pytest.mark.slow  # an optional library

CPU = torch.device("cpu")
SHAPES = ((50, 70), (70, 50), (150, 200))
ALL_KEPT = {"rt_detr", "rt_detr_v2", "d_fine", "deimv2", "detr"}  # whose post-processing has no `top_k`


def frames_of(shape: tuple[int, int], n: int = 3) -> torch.Tensor:
    """uint8 (n, 3, H, W), channels last, as videos give them."""
    coarse = np.random.RandomState(1).uniform(0, 255, (n, 5, 7, 3)).astype(np.float32)
    rows, columns = (np.linspace(0, k - 1, s).round().astype(int) for k, s in zip((5, 7), shape, strict=True))
    noise = np.random.RandomState(2).normal(0, 9, (n, *shape, 3))
    images = (coarse[:, rows][:, :, columns] + noise).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def detections(detector: Detector, frames: torch.Tensor) -> Detections:
    """All queries of the frames, whatever their scores."""
    (_, fetch), *_ = detector.start([frames], (frames.shape[3], frames.shape[2]), 0.0)
    return fetch()


def of_library(folder: Path, family: str, frames: Sequence[torch.Tensor]):
    """The library's outputs for frames, and its detections after post-processing."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    keep_all = {} if family in ALL_KEPT else {"top_k": 1000}
    with torch.inference_mode():
        out = model(**processor(images=[frame.numpy() for frame in frames], return_tensors="pt"))
        sizes = [tuple(frame.shape[1:]) for frame in frames]
        return out, processor.post_process_object_detection(out, threshold=0.0, target_sizes=sizes, **keep_all)


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_scores_and_queries_are_the_library_s(tiny: dict[str, Path], family: str) -> None:
    detector = open_detector(f"hf:{tiny[family]}", CPU)
    for shape in SHAPES:
        frames = frames_of(shape)
        out, results = of_library(tiny[family], family, frames)
        found = detections(detector, frames)
        assert len(found.frames) == len(frames) * QUERIES
        np.testing.assert_allclose(found.queries, out.last_hidden_state.flatten(0, 1), atol=1e-5)
        unit = np.float32([shape[1], shape[0]] * 2)
        seen = 0
        for i, result in enumerate(results):
            mine = found.frames == i
            person = result["labels"] == 1
            table = np.column_stack([found.scores[mine], found.boxes[mine] / unit])
            for score, box in zip(result["scores"][person], result["boxes"][person], strict=True):
                wanted = np.concatenate([[score], box.numpy() / unit])
                assert np.abs(table - wanted).max(1).min() < 1e-5
                seen += 1
        assert seen >= len(frames)
        if family not in ALL_KEPT:
            assert seen == len(frames) * QUERIES


@pytest.mark.parametrize("family", SOME_SLOW)
def test_each_decoder_layer_s_queries_are_the_library_s(tiny: dict[str, Path], family: str) -> None:
    frames = frames_of(SHAPES[0])
    out, _ = of_library(tiny[family], family, frames)
    last = detections(open_detector(f"hf:{tiny[family]}", CPU), frames)
    first_detector = open_detector(f"hf:{tiny[family]}", CPU, query_layer=1)
    first = detections(first_detector, frames)
    np.testing.assert_allclose(first.boxes, last.boxes, atol=1e-4)
    assert np.abs(first.queries - last.queries).max() > 0.1 and first_detector.key.endswith("-layer1")
    states = getattr(out, "intermediate_hidden_states", None)
    if states is not None:  # (layers, frames, ...) in some families, (frames, layers, ...) in others
        wanted = [states.select(axis, 0) for axis in (0, 1) if states.select(axis, 0).shape[0] == len(frames)]
        assert min(np.abs(first.queries - w.flatten(0, 1).numpy()).max() for w in wanted) < 1e-5
    with pytest.raises(InputError, match=r"--query_layer 3: .* has 2 decoder layers"):
        open_detector(f"hf:{tiny[family]}", CPU, query_layer=3)


@pytest.mark.parametrize("family", ["detr", "d_fine", "rf_detr"])
def test_a_batch_of_several_sizes_is_padded_as_the_library_does(tiny: dict[str, Path], family: str) -> None:
    shapes = ((50, 70), (70, 50))
    frames = [frames_of(shape, 1)[0] for shape in shapes]
    images, mask = torch.zeros(2, 3, 70, 70, dtype=torch.uint8), torch.ones(2, 70, 70, dtype=torch.bool)
    for i, (high, wide) in enumerate(shapes):
        images[i, :, :high, :wide], mask[i, :high, :wide] = frames[i], False
    found = open_detector(f"hf:{tiny[family]}", CPU).on_batch(images, mask, 0.0)
    out, _ = of_library(tiny[family], family, frames)
    np.testing.assert_allclose(found.queries, out.last_hidden_state.flatten(0, 1), atol=1e-5)
    np.testing.assert_allclose(found.boxes, box_cxcywh_to_xyxy(out.pred_boxes).flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("family", ["detr", "d_fine", "rf_detr"])
def test_preparing_frames_makes_the_host_wait_for_nothing(tiny: dict[str, Path], family: str) -> None:
    prepare = open_detector(f"hf:{tiny[family]}", CPU).prepare
    frames = frames_of(SHAPES[0])
    prepare(frames, None)  # constants that are made once
    with HostReads() as reads:
        prepare(frames, None)
    assert reads.seen == []


def test_16_bits_move_boxes_little_and_scores_too(tiny: dict[str, Path]) -> None:
    frames = frames_of(SHAPES[2])
    for family in ("detr", "dab_detr", "deformable_detr"):
        exact = detections(open_detector(f"hf:{tiny[family]}", CPU), frames)
        detector = open_detector(f"hf:{tiny[family]}", CPU, amp=torch.bfloat16)
        half = detections(detector, frames)
        assert 0 < np.abs(half.queries - exact.queries).max() < 0.2 and half.queries.dtype == np.float32
        assert np.abs(half.boxes - exact.boxes).max() / 200 < 0.02
        assert np.abs(half.scores - exact.scores).max() < 0.02 and detector.key.endswith("-bfloat16")


def test_official_detr_in_the_library_s_form_gives_the_same_tracks(tmp_path: Path) -> None:
    config = {"backbone": "resnet18", "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2, "image_size": 96}
    config |= {"dim_feedforward": 64, "num_queries": 8, "num_classes": 4, "norm": "frozen"}
    detr = fill_state_dict(build_model(config)[0])
    torch.save({"model": detr.state_dict(), "config": config, "epoch": 1}, tmp_path / "epoch_1.pth")
    detr_to_library(detr, config, tmp_path / "library")
    frames = frames_of((72, 96), 12)
    for layer in (1, 2):
        tracks = []
        for source in (tmp_path / "epoch_1.pth", f"hf:{tmp_path / 'library'}"):
            found = detections(open_detector(source, CPU, query_layer=layer), frames)
            kept = found.scores > np.median(found.scores)
            found = Detections(*(part[kept] for part in found))
            tracks.append(link(found.frames, found.boxes, found.scores, found.queries, 0.5))
        ours, theirs = tracks
        assert len(ours) == len(theirs) > 2
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.rows, b.rows)
            np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_the_key_names_weights_processor_and_settings(tiny: dict[str, Path], tmp_path: Path) -> None:
    source = f"hf:{tiny['rt_detr']}"
    detector = open_detector(source, CPU)
    keys = {
        detector.key,
        open_detector(source, CPU, image_size=96).key,
        open_detector(source, CPU, person_label="cat").key,
    }
    keys.add(open_detector(source, CPU, query_layer=1).key)
    shutil.copytree(tiny["rt_detr"], tmp_path / "other")
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}, do_normalize=True).save_pretrained(
        tmp_path / "other"
    )
    keys.add(open_detector(f"hf:{tmp_path / 'other'}", CPU).key)
    assert len(keys) == 5 and open_detector(source, CPU).key == detector.key and "rt_detr-64x64" in detector.key
    assert open_detector(source, CPU, person_label=2).key == open_detector(source, CPU, person_label="cat").key
    fewer = tmp_path / "fewer"  # as many weights, other answers: queries are the best of the encoder's
    shutil.copytree(tiny["rt_detr"], fewer)
    assert open_detector(f"hf:{fewer}", CPU).key == detector.key
    settings = json.loads((fewer / "config.json").read_text())
    (fewer / "config.json").write_text(json.dumps(settings | {"num_queries": QUERIES - 2}))
    other = open_detector(f"hf:{fewer}", CPU)
    assert other.weights == detector.weights and other.key != detector.key
    assert detector.config()["source"] == source and detector.frame_size == 0


def test_a_number_names_the_person_s_class_and_0_is_one(tiny: dict[str, Path], tmp_path: Path) -> None:
    detector = open_detector(f"hf:{tiny['d_fine']}", CPU, person_label=0)
    assert detector.person_label == 0
    frames = frames_of(SHAPES[0])
    out, _ = of_library(tiny["d_fine"], "d_fine", frames)
    np.testing.assert_allclose(detections(detector, frames).scores, out.logits[..., 0].sigmoid().flatten(), atol=1e-5)
    walkers = save_tiny("d_fine", tmp_path, {0: "pedestrian", 1: "dog", 2: "cat"})
    for label in (0, "0", "Pedestrian"):
        assert open_detector(f"hf:{walkers}", CPU, person_label=label).person_label == 0


def test_a_chain_of_stages_runs_with_it(
    tiny: dict[str, Path], stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--qmm_name", "hf", "--psn_score_th", "0.05"]
    detr = ["--detr", f"hf:{tiny['d_fine']}", "--query_layer", "1"]
    stages.run("train_qmm", *flags, *detr, "--iou_th", "0.01", "--epochs", "1")
    for subset in ("train", "val"):
        stages.run("eval_qmm", *flags, "--sim_th", "0.5", "--subset", subset)
    cached = sorted(stages.checkpoint.rglob("queries/*d_fine-64x64*layer1.tar"))
    assert [path.name.partition("-")[0] for path in cached] == ["train", "val"]

    stages.run("train_action_head", *flags, "--epochs", "1", "--sim_th", "0.5")
    video = next((stages.data / "synthetic" / "videos").glob("val_*.avi"))
    weights = [f"--encoder={stages.folder('hf')}/encoder/epoch_1.pth"]
    weights += [f"--head={next(stages.folder('hf').glob('head/*/epoch_1.pth'))}", "--min_tube_length=1"]
    command = ["predict.py", str(video), *weights, f"--out={tmp_path}", "--device=cpu", "--threads=1"]
    monkeypatch.setattr("sys.argv", command)
    predict.main()
    made = json.loads((tmp_path / f"{video.stem}.json").read_text())
    assert made["people"] and (tmp_path / f"{video.stem}.mp4").is_file()


def refused(source: str, **settings: object) -> str:
    """The one line that a detector is refused with."""
    with pytest.raises(InputError) as refusal:
        open_detector(source, CPU, **settings)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_mistakes_are_one_line(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tiny["d_fine"]
    assert "no such folder" in refused(f"hf:{tmp_path / 'nothing'}")
    assert "not found on the hub" in refused("hf:nobody/nothing")
    for missing in ("config.json", "model.safetensors", "preprocessor_config.json"):
        folder = tmp_path / missing
        shutil.copytree(good, folder)
        (folder / missing).unlink()
        assert "not whole" in refused(f"hf:{folder}"), missing
    weights = load_file(good / "model.safetensors")
    cut = tmp_path / "cut"
    shutil.copytree(good, cut)
    save_file(dict(list(weights.items())[5:]), cut / "model.safetensors", {"format": "pt"})
    assert "weights are not whole" in refused(f"hf:{cut}")
    pickled = tmp_path / "pickled"
    shutil.copytree(good, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    assert "not whole" in refused(f"hf:{pickled}")
    assert "--person_label (0 bicycle, 1 person, 2 cat)" in refused(f"hf:{good}", person_label="dog")
    assert "--pad_square" in refused(f"hf:{good}", square=True)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert refused(f"hf:{good}").endswith(hf_detector.NEEDS)


def test_a_model_without_a_vector_for_each_box_is_refused(tmp_path: Path) -> None:
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, image_size=[64, 64],
        num_detection_tokens=5, id2label={0: "person"}, label2id={"person": 0},
    )  # fmt: skip
    transformers.AutoModelForObjectDetection.from_config(config).save_pretrained(tmp_path)
    transformers.YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    assert "no box and vector of each query" in refused(f"hf:{tmp_path}")
