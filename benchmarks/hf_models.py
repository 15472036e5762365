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


def d_fine_n(hf: Any) -> tuple[Any, Any]:
    """D-FINE-N (Peng et al. 2024, COCO AP 42.8 at 640 x 640): 3.8 million parameters."""
    backbone = hf.HGNetV2Config(  # B0
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        hidden_sizes=[64, 256, 512, 1024],
        depths=[1, 1, 2, 1],
        use_learnable_affine_block=True,
        out_features=["stage3", "stage4"],
    )
    config = hf.DFineConfig(
        backbone_config=backbone,
        encoder_in_channels=[512, 1024],
        feat_strides=[16, 32],
        encoder_hidden_dim=128,
        encode_proj_layers=[1],
        encoder_ffn_dim=512,
        hidden_expansion=0.34,
        depth_mult=0.5,
        d_model=128,
        decoder_in_channels=[128, 128],
        num_feature_levels=2,
        decoder_layers=3,
        decoder_n_points=[6, 6],
        decoder_ffn_dim=512,
        num_labels=80,
    )
    return config, hf.RTDetrImageProcessor()


def rt_detr_r18(hf: Any) -> tuple[Any, Any]:
    """RT-DETR-R18 (Zhao et al. 2024, COCO AP 46.5 at 640 x 640): 20 million parameters."""
    backbone = hf.RTDetrResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        out_features=["stage2", "stage3", "stage4"],
    )
    sizes = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3, "num_labels": 80}
    return hf.RTDetrConfig(backbone_config=backbone, **sizes), hf.RTDetrImageProcessor()


def rf_detr_n(hf: Any) -> tuple[Any, Any]:
    """RF-DETR-N (Roboflow 2025, COCO AP 48.0 at 384 x 384): 30.5 million parameters."""
    backbone = hf.RfDetrDinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=384,
        patch_size=16,
        num_windows=2,
        out_indices=[3, 6, 9, 12],
    )
    config = hf.RfDetrConfig(backbone_config=backbone, decoder_layers=2, num_labels=91)
    return config, hf.RfDetrImageProcessor(size={"height": 384, "width": 384})


def d_fine_small(hf: Any) -> tuple[Any, Any]:
    """A D-FINE of people alone for frames of 128 x 128, to be trained from scratch in minutes on a CPU."""
    backbone = hf.HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 32, 64, 128],
        stage_mid_channels=[16, 16, 32, 32],
        stage_out_channels=[32, 64, 128, 128],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        hidden_sizes=[32, 64, 128, 128],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = hf.DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[64, 128, 128],
        encoder_hidden_dim=64,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        depth_mult=0.34,
        d_model=64,
        decoder_in_channels=[64, 64, 64],
        decoder_layers=3,
        decoder_ffn_dim=128,
        decoder_attention_heads=4,
        num_queries=20,
        num_labels=1,
    )
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
