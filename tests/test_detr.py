"""The detector against the answers of the official implementation, and its properties."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.backbone import Backbone
from models.detr import PERSON, build_model, for_inference, full_config, normalize
from models.transformer import Attention, Transformer
from tests.fill import SMALL, fill_state_dict, filled_detr
from utils.box_ops import box_cxcywh_to_xyxy, box_iou
from utils.misc import InputError

MODELS = {
    "detr-r50": {"backbone": "resnet50"},
    "detr-r50-dc5": {"backbone": "resnet50", "dilation": True},
    "detr-r101": {"backbone": "resnet101"},
    "detr-r101-dc5": {"backbone": "resnet101", "dilation": True},
}


def oracle_images() -> list[torch.Tensor]:
    draw = np.random.RandomState(0)
    shapes = ((3, 192, 256), (3, 160, 224))
    return [torch.from_numpy(draw.standard_normal(shape).astype(np.float32)) for shape in shapes]


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_the_official_ones(fixtures, name):
    wanted = json.loads((fixtures / "detr_state_dict_keys.json").read_text())[name]
    with torch.device("meta"):
        detr, _, _ = build_model(MODELS[name])
    assert {k: list(v.shape) for k, v in detr.state_dict().items()} == wanted


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "101" in n else n for n in MODELS])
def test_answers_are_the_official_ones(fixtures, request, name):
    wanted = np.load(fixtures / "detr_outputs.npz")  # two of the four, to stay small
    if f"{name}/queries" not in wanted:
        wanted = np.load(request.getfixturevalue("shared") / "oracles" / "detr_outputs.npz")
    detr = filled_detr(MODELS[name])
    with torch.inference_mode():
        answers = detr(oracle_images())
    for part in ("pred_logits", "pred_boxes", "queries"):
        np.testing.assert_allclose(answers[part].numpy(), wanted[f"{name}/{part}"], atol=1e-4, err_msg=part)


def test_transformer_alone(fixtures):
    held = {k: torch.from_numpy(v) for k, v in np.load(fixtures / "detr_parts.npz").items()}
    transformer = fill_state_dict(Transformer(256, 8, 6, 6, 2048, 0.0, False))
    args, memories = (held["src"], held["mask"], held["query_embed"], held["pos"]), []
    with torch.no_grad():
        transformer.encoder.layers[-1].register_forward_hook(lambda *call: memories.append(call[2]))
        states = transformer(*args)
    memory = memories[0].transpose(1, 2).unflatten(2, held["src"].shape[2:])
    seen = ~held["mask"][:, None].expand_as(memory)
    # These sharp weights amplify rounding: in float64 we are 2e-4 from the stored float32 answers too.
    for found, wanted in (
        (memory[seen], held["memory"][seen]),
        (states[0], held["hs_first"]),
        (states[-1], held["hs_last"]),
    ):
        torch.testing.assert_close(found, wanted, atol=4e-4, rtol=0)
        assert (found - wanted).square().mean().sqrt() < 1e-4


def test_matching_loss_and_postprocessing(fixtures):
    held = {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(fixtures / "detr_parts.npz").items()}
    _, criterion, postprocess = build_model({"set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2})
    outputs = {"pred_logits": held["logits"], "pred_boxes": held["boxes"]}
    boxes = [held["target_boxes_0"], held["target_boxes_1"]]
    targets = [{"labels": torch.full((len(b),), PERSON), "boxes": b} for b in boxes]
    (matches,) = criterion.match(outputs, targets)
    for i, start in enumerate((0, len(boxes[0]))):
        _, pred, target = matches[:, matches[0] == i]
        assert pred.tolist() == held[f"match_pred_{i}"].tolist()
        assert (target - start).tolist() == held[f"match_tgt_{i}"].tolist()
    losses = criterion(outputs, targets)
    for name in ("loss_ce", "class_error", "loss_bbox", "loss_giou", "cardinality_error"):
        assert losses[name].item() == pytest.approx(held[name].item(), abs=1e-4), name
    pixels = postprocess(outputs, torch.tensor([[240, 320], [360, 480]]))
    for part in ("scores", "labels", "boxes"):
        found = torch.stack([picture[part] for picture in pixels])
        torch.testing.assert_close(found, held[f"post_{part}"], atol=1e-3, rtol=0, check_dtype=False)


def test_the_published_box_term_is_iou():
    boxes = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.2
    outputs = {"pred_logits": torch.zeros(1, 3, 3), "pred_boxes": boxes[None, :3]}
    targets = [{"labels": torch.ones(2, dtype=torch.int64), "boxes": boxes[3:]}]
    config = full_config({"num_classes": 2, "box_overlap": "iou", "set_cost_class": 0, "set_cost_bbox": 0})
    losses = build_model(config)[1](outputs, targets)
    iou = box_iou(*(box_cxcywh_to_xyxy(b) for b in (boxes[:3], boxes[3:])))[0]
    best = max(iou[i, 0] + iou[j, 1] for i in range(3) for j in range(3) if i != j)
    assert losses["loss_giou"] == pytest.approx(float((2 - best) / 2))


@pytest.fixture
def small():
    """A small detector with telling weights, and pictures for it."""
    detr = fill_state_dict(build_model(SMALL)[0]).eval()
    return detr, torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_no_mask_is_a_mask_of_nothing(small):
    detr, images = small
    with torch.inference_mode():
        plain, masked = detr(images), detr(images, torch.zeros(2, 64, 96, dtype=torch.bool))
    for part in ("pred_logits", "pred_boxes", "queries"):
        torch.testing.assert_close(plain[part], masked[part], atol=1e-5, rtol=1e-5)


def test_what_padding_holds_is_unseen(small):
    transformer, draw = copy.deepcopy(small[0].transformer).double(), torch.Generator().manual_seed(0)
    src, pos = (torch.randn(1, 32, 4, 9, generator=draw, dtype=torch.float64) for _ in range(2))
    queries = torch.randn(5, 32, generator=draw, dtype=torch.float64)
    mask = torch.zeros(1, 4, 9, dtype=torch.bool)
    mask[..., 6:] = True
    with torch.inference_mode():
        padded = transformer(src, mask, queries, pos)
        cut = transformer(src[..., :6], None, queries, pos[..., :6])
    torch.testing.assert_close(padded, cut, atol=1e-11, rtol=1e-11)  # float32 would lose digits in sharp weights


def test_training_goes_on_after_inference(small):
    detr, images = copy.deepcopy(small)  # others test it in evaluation mode
    with torch.inference_mode():
        detr(images)
    detr.train()(images)["pred_boxes"].sum().backward()
    assert detr.input_proj.weight.grad.abs().sum() > 0


def test_positions_in_features_are_what_the_transformer_reads(small):
    detr, images = small
    added, _, _ = build_model({**SMALL, "position_in_features": True})
    added.load_state_dict(detr.state_dict())
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[0, :, 64:] = True
    with torch.inference_mode():
        plain, found = detr(images, mask), added.eval()(images, mask)
        detr.transformer.register_forward_pre_hook(lambda _, args: (args[0] + args[3], *args[1:]))
        expected = detr(images, mask)
    assert (plain["pred_boxes"] - found["pred_boxes"]).abs().max() > 1e-3
    torch.testing.assert_close(found["pred_boxes"], expected["pred_boxes"])


@pytest.mark.parametrize(("norm", "dtype"), [("frozen", None), ("bn", None), ("bn", torch.bfloat16)])
def test_the_fast_form_finds_the_same_people(small, norm, dtype):
    detr = fill_state_dict(build_model({**SMALL, "norm": norm})[0]).eval()
    with torch.inference_mode():
        plain = detr(small[1])
        fast = for_inference(detr, dtype)(small[1])
    assert not any("bn" in name for name in detr.state_dict())
    atol = 1e-5 if dtype is None else 2e-2
    for part in ("pred_logits", "pred_boxes", "queries"):
        assert fast[part].dtype == torch.float32
    torch.testing.assert_close(fast["pred_boxes"], plain["pred_boxes"], atol=atol, rtol=0)
    scores = [out["pred_logits"].softmax(-1)[..., PERSON] for out in (plain, fast)]
    torch.testing.assert_close(scores[1], scores[0], atol=10 * atol, rtol=0)
    if dtype is None:
        torch.testing.assert_close(fast["queries"], plain["queries"], atol=1e-4, rtol=1e-4)


def test_mixed_precision_trains(small):
    detr, images = small
    _, criterion, _ = build_model(SMALL)
    targets = [{"labels": torch.tensor([PERSON]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}] * 2
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detr.train()(images.contiguous(memory_format=torch.channels_last))
        loss = criterion.total(criterion(outputs, targets))
    loss.backward()
    assert outputs["pred_boxes"].dtype == outputs["queries"].dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detr.parameters())


def test_attention_and_its_gradient_are_float32_on_a_cpu():
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if "attention" in operation.overloadpacket.__name__:
                seen.append(args[0].dtype)
            return operation(*args, **(kwargs or {}))

    attention, x = Attention(16, 2, 0.0), torch.randn(1, 5, 16)
    with Record(), torch.autocast("cpu", torch.bfloat16):
        attention(x, x, x, None).sum().backward()
    assert seen == [torch.float32, torch.float32]


@pytest.mark.slow
def test_compiles_as_one_graph(small):
    detr, images = for_inference(small[0], torch.bfloat16), small[1]
    with torch.inference_mode():
        compiled = torch.compile(detr, fullgraph=True, backend="eager")(images)
        torch.testing.assert_close(compiled["queries"], detr(images)["queries"])


def test_dilation_doubles_the_resolution_of_any_backbone():
    images = torch.zeros(1, 3, 64, 64, device="meta")
    for name in ("resnet18", "resnet50"):
        with torch.device("meta"):
            sizes = [Backbone(name, dilation, "bn", 4)(images).shape[-1] for dilation in (False, True)]
        assert sizes == [2, 4]


def test_training_gives_earlier_layers_and_a_gradient_everywhere():
    detr, criterion, _ = build_model(SMALL)
    images = normalize(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    targets = [
        {"labels": torch.tensor([PERSON]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    losses = criterion(detr.train()(images), targets)
    assert {"loss_ce", "loss_bbox_0", "loss_giou_0"} <= losses.keys()
    criterion.total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detr.parameters())


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, -0.1, 0.2], [9.0, 9.0, 0.1, 0.1]])
def test_degenerate_boxes_never_trip_the_loss(box):
    _, criterion, _ = build_model(SMALL)
    predicted = torch.tensor(box).repeat(1, 5, 1).requires_grad_()
    outputs = {"pred_logits": torch.zeros(1, 5, 3), "pred_boxes": predicted}
    for wanted in (box, [0.5, 0.5, 0.2, 0.2]):
        targets = [{"labels": torch.tensor([PERSON]), "boxes": torch.tensor([wanted])}]
        loss = criterion.total(criterion(outputs, targets))
        loss.backward()
        assert loss.isfinite() and predicted.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_reach_the_loss(bad):
    _, criterion, _ = build_model(SMALL)
    outputs = {"pred_logits": torch.full((1, 5, 3), bad), "pred_boxes": torch.full((1, 5, 4), bad)}
    targets = [{"labels": torch.tensor([PERSON]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    assert not criterion.total(criterion(outputs, targets)).isfinite()


def test_targets_beyond_the_queries_are_left_out():
    _, criterion, _ = build_model(SMALL)
    boxes = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    outputs = {"pred_logits": torch.zeros(1, 5, 3), "pred_boxes": boxes[None, :5]}
    targets = [{"labels": torch.ones(8, dtype=torch.int64), "boxes": boxes}]
    ((image, pred, target),) = criterion.match(outputs, targets)
    assert image.tolist() == [0] * 5 and pred.tolist() == target.tolist() == list(range(5))


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(InputError, match="hidden_dims"):
        build_model({"hidden_dims": 3})
    with pytest.raises(InputError, match=r"resnet19.*resnet18"):
        build_model({"backbone": "resnet19"})
    with pytest.raises(InputError, match=r"num_queries=2\.5"):
        build_model({"num_queries": 2.5})


@pytest.mark.slow
def test_a_deep_backbone_from_scratch_begins_with_small_gradients() -> None:
    """Those of the first layer do not grow with the number of blocks; a ResNet-101 could hardly be trained else."""
    norms = []
    for name in ("resnet50", "resnet101"):
        torch.manual_seed(0)
        backbone = Backbone(name, True, "bn", 4)
        backbone(torch.randn(2, 3, 64, 64)).square().mean().backward()
        norms.append(backbone.body.conv1.weight.grad.norm().item())
    assert norms[1] < 2 * norms[0] < 1
