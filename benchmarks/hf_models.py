"""Detectors of `transformers` in their true sizes with random weights, from configurations written here.

    python -m benchmarks.hf_models FOLDER

leaves a small D-FINE there, for `train_detr.py --detr hf:FOLDER` on synthetic data.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.hf_detector import HFDetector, load_transformers
from utils.cli import Parser, run


def hg_net(hf: Any, stem: int, middle: list[int], widths: list[int], layers: int, first: int, **more: Any) -> Any:
    """An HGNetV2 of four stages, of one block each unless `more` says so; the stages from `first` on are its features.

    Args:
        stem: channels of the stem.
        middle, widths: channels within each stage, and that it gives.
        layers: layers of a block.
    """
    blocks = {"stage_num_blocks": [1] * 4, "depths": [1] * 4, "stage_numb_of_layers": [layers] * 4}
    inner = {"stem_channels": [3, stem, stem], "stage_in_channels": [stem, *widths[:-1]], "stage_mid_channels": middle}
    outer = {"stage_out_channels": widths, "hidden_sizes": widths}
    outer["out_features"] = [f"stage{i}" for i in range(first, 5)]
    return hf.HGNetV2Config(**blocks | inner | outer | more)


def d_fine(hf: Any, backbone: Any, widths: list[int], d: int, ffn: int, **more: Any) -> Any:
    """A D-FINE of width `d` with three decoder layers; `widths`: channels of the backbone's features."""
    encoder = {"encoder_in_channels": widths, "encoder_hidden_dim": d, "encoder_ffn_dim": ffn}
    decoder = {"d_model": d, "decoder_in_channels": [d] * len(widths), "decoder_ffn_dim": ffn, "decoder_layers": 3}
    return hf.DFineConfig(backbone_config=backbone, **encoder, **decoder, **more)


def d_fine_n(hf: Any) -> tuple[Any, Any]:
    """D-FINE-N (Peng et al. 2024, COCO AP 42.8 at 640 x 640): 3.8 million parameters."""
    widths, blocks = [64, 256, 512, 1024], [1, 1, 2, 1]  # of HGNetV2-B0
    backbone = hg_net(hf, 16, [16, 32, 64, 128], widths, 3, 3, stage_num_blocks=blocks, depths=blocks,
                      use_learnable_affine_block=True)  # fmt: skip
    levels = {"feat_strides": [16, 32], "num_feature_levels": 2, "encode_proj_layers": [1], "decoder_n_points": [6, 6]}
    size = {"hidden_expansion": 0.34, "depth_mult": 0.5, "num_labels": 80}
    return d_fine(hf, backbone, widths[2:], 128, 512, **levels, **size), hf.RTDetrImageProcessor()


def rt_detr_r18(hf: Any) -> tuple[Any, Any]:
    """RT-DETR-R18 (Zhao et al. 2024, COCO AP 46.5 at 640 x 640): 20 million parameters."""
    widths, features = [64, 128, 256, 512], ["stage2", "stage3", "stage4"]
    backbone = hf.RTDetrResNetConfig(layer_type="basic", depths=[2] * 4, hidden_sizes=widths, out_features=features)
    sizes = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3, "num_labels": 80}
    return hf.RTDetrConfig(backbone_config=backbone, **sizes), hf.RTDetrImageProcessor()


def rf_detr_n(hf: Any) -> tuple[Any, Any]:
    """RF-DETR-N (Roboflow 2025, COCO AP 48.0 at 384 x 384): 30.5 million parameters."""
    layers = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "out_indices": [3, 6, 9, 12]}
    backbone = hf.RfDetrDinov2Config(image_size=384, patch_size=16, num_windows=2, **layers)
    config = hf.RfDetrConfig(backbone_config=backbone, decoder_layers=2, num_labels=91)
    return config, hf.RfDetrImageProcessor(size={"height": 384, "width": 384})


def d_fine_small(hf: Any) -> tuple[Any, Any]:
    """A D-FINE of people alone for frames of 128 x 128, to be trained from scratch in minutes on a CPU."""
    widths = [32, 64, 128, 128]
    backbone = hg_net(hf, 16, [16, 16, 32, 32], widths, 2, 2)
    size = {"hidden_expansion": 0.5, "depth_mult": 0.34, "num_queries": 20, "num_labels": 1}
    size |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "freeze_backbone_batch_norms": False}
    config = d_fine(hf, backbone, widths[1:], 64, 128, **size)
    return config, hf.RTDetrImageProcessor(size={"height": 128, "width": 128})


MODELS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "D-FINE-N": d_fine_n,
    "RT-DETR-R18": rt_detr_r18,
    "RF-DETR-N": rf_detr_n,
}


def random_detector(name: str, device: torch.device) -> HFDetector:
    """One of `MODELS` with random weights."""
    return HFDetector(*_random(MODELS[name]), name, device)


def _random(configure: Callable[[Any], tuple[Any, Any]]) -> tuple[nn.Module, Any]:
    hf = load_transformers()
    config, processor = configure(hf)
    config.id2label = {i: "person" if i == 0 else str(i) for i in range(config.num_labels)}
    torch.manual_seed(0)
    return hf.AutoModelForObjectDetection.from_config(config).eval(), processor


def main() -> None:
    """The command line."""
    parser = Parser("Leave a small D-FINE with random weights in a folder, for train_detr.py --detr hf:FOLDER.")
    parser.add_argument("folder", help="where it is saved")
    folder = parser.parse_args().folder
    for part in _random(d_fine_small):
        part.save_pretrained(folder)


if __name__ == "__main__":
    run(main)
