"""The kinds of frozen detectors behind one interface, `Network`: one function each, which `open_network` chooses."""

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import hf_detector
from models.detr import PERSON, for_inference, normalize, pad_square
from models.weights import build_detr, dilation_is_unknown, read_detector, weights_hash
from utils.misc import InputError, counted


class Settings(NamedTuple):
    """How a detector is used; 0, False and None leave it to the detector. `query_layer`: decoder layer of the query
    vectors, from 1; `person_label`: its label of people; `amp`: a dtype (bfloat16, float16) or None."""

    image_size: int = 0
    square: bool = False
    query_layer: int | None = None
    person_label: int | str | None = None
    amp: torch.dtype | None = None


class Network(NamedTuple):
    """A detector ready for inference.

    Attributes:
        module: images float (b, 3, h, w), mask (b, h, w) or None -> a dict of `pred_boxes` (b, N, 4) cxcywh from 0
            to 1, `queries` (b, N, d) and what `scores` takes.
        prepare: images uint8 (b, 3, H, W), mask -> images and mask as `module` takes them.
        scores: outputs of `module` -> person scores (b, N).
        weights: a checksum. key: names weights, and all settings that change a number.
        d: width of queries. n_layers: decoder layers. image_size, square, query_layer, person_label: as it is used.
        frame_size: longer side that frames are resized to before `prepare`; 0: as they are.
    """

    module: nn.Module
    prepare: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    scores: Callable[[dict], Tensor]
    weights: str
    key: str
    d: int
    n_layers: int
    image_size: int
    square: bool
    query_layer: int
    person_label: int
    frame_size: int


def open_detr(path: Path, checkpoint: object, device: torch.device, use: Settings) -> Network:
    """DETR, of the official release or trained by this project."""
    detr, config = build_detr(path, checkpoint, device, use.person_label)
    n_layers, person = config["dec_layers"], config["person_label"]
    layer = detr.query_layer = _layer(use.query_layer, n_layers, str(path))
    size, square = use.image_size or config["image_size"], use.square or config["pad_square"]
    weights = weights_hash(detr.state_dict()) + "-undilated" * dilation_is_unknown(path, checkpoint)
    changed = f"-layer{layer}" * (layer != n_layers) + f"-person{person}" * (person != PERSON)
    key = f"{weights}-{size}{'-square' * square}{changed}{_amp(use)}"

    def prepare(images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return normalize(pad_square(images) if square else images), mask

    def scores(out: dict) -> Tensor:
        return out["pred_logits"].softmax(-1)[..., person]

    module, d = for_inference(detr, use.amp), config["hidden_dim"]
    return Network(module, prepare, scores, weights, key, d, n_layers, size, square, layer, person, size)


def open_hf(name: str, checkpoint: object, device: torch.device, use: Settings) -> Network:
    """A detector of `transformers`: by its name (`checkpoint` None), or out of a checkpoint of this project."""
    if use.square:
        raise InputError(f"--pad_square: {name} is given frames as its own image processor says; leave the flag out")
    detector = hf_detector.load(name, checkpoint, device, use.image_size, use.person_label)
    layer = _layer(use.query_layer, detector.n_layers, name)
    if layer != detector.n_layers:
        detector.take_layer(layer)
    person, n_layers, weights = detector.person_label, detector.n_layers, weights_hash(detector.model.state_dict())
    changed = f"-layer{layer}" * (layer != n_layers)
    key = f"{weights}-{detector.settings_key()}-person{person}{changed}{_amp(use)}"
    module, d, scores = hf_detector.for_inference(detector, use.amp), detector.d, itemgetter("scores")
    size = use.image_size
    return Network(module, detector.prepare, scores, weights, key, d, n_layers, size, False, layer, person, 0)


def _amp(use: Settings) -> str:
    return "" if use.amp is None else f"-{str(use.amp).removeprefix('torch.')}"


def _layer(number: int | None, n_layers: int, source: str) -> int:
    if (number or n_layers) > n_layers:
        raise InputError(f"--query_layer {number}: {source} has {counted(n_layers, 'decoder layer')}")
    return number or n_layers


def open_network(source: str | Path, checkpoint_root: str | Path, device: torch.device, use: Settings) -> Network:
    """The detector that `source` names: `hf:<name or folder>`, or as in `models.weights.read_detector`."""
    if is_hf(source):
        return open_hf(str(source), None, device, use)
    path, checkpoint = read_detector(source, checkpoint_root)
    if hf_detector.holds_hf(checkpoint):
        return open_hf(str(path), checkpoint, device, use)
    return open_detr(path, checkpoint, device, use)


def is_hf(source: str | Path) -> bool:
    """Whether `source` names a detector of `transformers`."""
    return str(source).startswith(hf_detector.PREFIX)
