"""Tiny detectors of `transformers` with random weights, one of each family, saved as folders."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.hf_models import hg_net

D, QUERIES = 32, 9
LABELS = {0: "bicycle", 1: "person", 2: "cat"}
SQUARE = {"height": 64, "width": 64}


def _resnet(transformers):
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )


def _attention() -> dict:
    pairs = [(part, size) for part in ("encoder", "decoder") for size in (("attention_heads", 4), ("ffn_dim", 48))]
    sizes = {f"{part}_{name}": n for part, (name, n) in pairs}
    return {"d_model": D, "encoder_layers": 1, "decoder_layers": 2, "num_queries": QUERIES, **sizes}


def _detr(t):
    config = t.DetrConfig(backbone_config=_resnet(t), use_timm_backbone=False, **_attention())
    return config, t.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def _conditional_detr(t):
    config = t.ConditionalDetrConfig(backbone_config=_resnet(t), use_timm_backbone=False, **_attention())
    return config, t.ConditionalDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def _dab_detr(t):
    sizes = {"hidden_size": D, **_attention()}
    sizes.pop("d_model")
    config = t.DabDetrConfig(backbone_config=_resnet(t), use_timm_backbone=False, **sizes)
    return config, t.ConditionalDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def _deformable_detr(t):
    backbone = _resnet(t)
    backbone.set_output_features_output_indices(out_features=["stage2", "stage3", "stage4"], out_indices=None)
    config = t.DeformableDetrConfig(
        backbone_config=backbone, use_timm_backbone=False, num_feature_levels=3, with_box_refine=True, **_attention()
    )
    return config, t.DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def _hybrid() -> dict:
    return {
        "encoder_hidden_dim": D,
        "encoder_in_channels": [16, 16, 32],
        "decoder_in_channels": [D, D, D],
        "hidden_expansion": 0.5,
        "num_denoising": 4,
        **_attention(),
    }


def _rt_detr(t, name="RTDetrConfig"):
    backbone = t.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return getattr(t, name)(backbone_config=backbone, **_hybrid()), t.RTDetrImageProcessor(size=SQUARE)


def _rt_detr_v2(t):
    return _rt_detr(t, "RTDetrV2Config")


def _d_fine(t, name="DFineConfig"):
    backbone = hg_net(t, 8, [8, 8, 8, 16], [16, 16, 16, 32], 1, 2, use_learnable_affine_block=True)
    config = getattr(t, name)(backbone_config=backbone, **_hybrid())
    return config, t.RTDetrImageProcessor(size=SQUARE)


def _deimv2(t):
    return _d_fine(t, "Deimv2Config")


def _lw_detr(t):
    backbone = t.LwDetrViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        pretrain_image_size=64,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    sizes = {"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "projector_scale_factors": [1.0]}
    config = t.LwDetrConfig(
        backbone_config=backbone,
        d_model=D,
        decoder_layers=2,
        decoder_ffn_dim=48,
        num_queries=QUERIES,
        group_detr=2,
        **sizes,
    )
    return config, t.DeformableDetrImageProcessor(size=SQUARE)


def _rf_detr(t):
    backbone = t.RfDetrDinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        num_windows=2,
        out_indices=[1, 2],
    )
    sizes = {"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4}
    config = t.RfDetrConfig(
        backbone_config=backbone,
        d_model=D,
        decoder_layers=2,
        decoder_ffn_dim=48,
        num_queries=QUERIES,
        group_detr=2,
        **sizes,
    )
    return config, t.RfDetrImageProcessor(size=SQUARE)


FAMILIES = {
    "detr": _detr,
    "conditional_detr": _conditional_detr,
    "dab_detr": _dab_detr,
    "deformable_detr": _deformable_detr,
    "rt_detr": _rt_detr,
    "rt_detr_v2": _rt_detr_v2,
    "d_fine": _d_fine,
    "deimv2": _deimv2,
    "lw_detr": _lw_detr,
    "rf_detr": _rf_detr,
}


QUICK = ("detr", "d_fine", "rf_detr")
SOME_SLOW = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in FAMILIES]


def save_tiny(family: str, folder: Path, labels: dict[int, str] = LABELS) -> Path:
    """A tiny detector as `save_pretrained` leaves it, its weights far enough from zero to tell queries apart."""
    import transformers

    config, processor = FAMILIES[family](transformers)
    config.id2label, config.label2id = labels, {name: i for i, name in labels.items()}
    torch.manual_seed(0)
    model = transformers.AutoModelForObjectDetection.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.0 / parameter[0].numel() ** 0.5)
            elif re.search(r"class_.*bias", name):
                parameter.zero_()[1] = 3.0  # people are found
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def library_name(name: str) -> str:
    """The library's name of a state-dict entry of official DETR, but for the attention's joined projections."""
    backbone = "model.backbone.conv_encoder.model."
    rules = (
        (r"^backbone\.0\.body\.conv1\.", backbone + "embedder.embedder.convolution."),
        (r"^backbone\.0\.body\.bn1\.", backbone + "embedder.embedder.normalization."),
        (
            r"^backbone\.0\.body\.layer(\d)\.(\d+)\.",
            lambda m: f"{backbone}encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.",
        ),
        (r"(layers\.\d+)\.conv(\d)\.", lambda m: f"{m[1]}.layer.{int(m[2]) - 1}.convolution."),
        (r"(layers\.\d+)\.bn(\d)\.", lambda m: f"{m[1]}.layer.{int(m[2]) - 1}.normalization."),
        (r"downsample\.0\.", "shortcut.convolution."),
        (r"downsample\.1\.", "shortcut.normalization."),
        (r"^transformer\.", "model."),
        (r"^input_proj\.", "model.input_projection."),
        (r"^query_embed\.", "model.query_position_embeddings."),
        (r"^class_embed\.", "class_labels_classifier."),
        (r"^bbox_embed\.", "bbox_predictor."),
        (r"linear(\d)\.", r"fc\1."),
        (r"multihead_attn\.", "encoder_attn."),
        (r"decoder\.norm\.", "decoder.layernorm."),
        (r"norm1\.", "self_attn_layer_norm."),
        (r"(decoder.*)norm2\.", r"\1encoder_attn_layer_norm."),
        (r"norm[23]\.", "final_layer_norm."),
    )
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def detr_to_library(detr: torch.nn.Module, config: dict, folder: Path) -> None:
    """Save a DETR of this project as the library does, taking frames as they are."""
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage4"],
    )
    sizes = {"d_model": config["hidden_dim"], "num_queries": config["num_queries"], "num_labels": config["num_classes"]}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_attention_heads": config["nheads"], f"{part}_ffn_dim": config["dim_feedforward"]}
        sizes[f"{part}_layers"] = config[f"{part[:3]}_layers"]
    settings = transformers.DetrConfig(backbone_config=backbone, use_timm_backbone=False, **sizes)
    settings.id2label = {0: "nothing", 1: "person", 2: "b", 3: "c"}
    state = {}
    for name, value in detr.state_dict().items():
        name = library_name(name)
        if "in_proj_" in name or name.endswith(("in_proj.weight", "in_proj.bias")):
            kind = name.rpartition("_")[2]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                state[name.replace(f"in_proj_{kind}", f"{letter}_proj.{kind}")] = part.contiguous()
        else:
            state[name] = value
    transformers.DetrForObjectDetection(settings).save_pretrained(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})  # under the names of the hub's files
    transformers.DetrImageProcessor(do_resize=False, do_pad=False).save_pretrained(folder)
