"""Query-based detectors of Hugging Face `transformers` as the frozen detector: `--detr hf:<name or folder>`.

Detr, ConditionalDetr, DabDetr, DeformableDetr, RTDetr, RTDetrV2, DFine, Deimv2, LwDetr, RfDetr and what else
`AutoModelForObjectDetection` gives with boxes and a decoder's queries. Size, normalisation and padding are those of the
model's own image processor. Weights come from the hub (its cache, its own HF_HUB_OFFLINE) or from a folder that
`save_pretrained` left; safetensors alone are read.
"""

import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.detr import pad_images
from models.hf_fusion import fuse
from models.weights import load_weights
from utils.distributed import world_size
from utils.misc import InputError, checksum

PREFIX = "hf:"
NEEDS = "needs the package transformers, which is not here; pip install -r requirements-hf.txt"
_PROBES = ((72, 96), (900, 1200))  # frames smaller and larger than what most models take
_IN_FLOAT32 = re.compile(r"bbox|class|score|integral|ref(erence)?_point")  # layers of boxes and scores in 16-bit models


def load_transformers() -> Any:
    """The package, quiet; InputError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise InputError(f"--detr {PREFIX}...: {NEEDS}") from None
    from huggingface_hub.utils import logging as hub_logging

    for logger in (transformers.logging, hub_logging):
        logger.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def load_pretrained(name: str) -> tuple[nn.Module, Any]:
    """A detector and its image processor, by name from the hub or from a folder.

    Raises:
        InputError: there is none, it is not whole, or it is not an object detector.
    """
    hf = load_transformers()
    try:
        model, info = hf.AutoModelForObjectDetection.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, dtype=torch.float32, trust_remote_code=False
        )
        processor = hf.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except ImportError as error:  # timm, of some backbones
        raise InputError(f"{PREFIX}{name}: {_one_line(error)}; pip install -r requirements-hf.txt") from None
    except Exception as error:  # the library raises whatever its parts do
        reason = "no such folder, and not found on the hub (or no network)"
        if Path(name).is_dir():
            reason = "the folder is not whole, or not a detector's"
        raise InputError(f"{PREFIX}{name}: {reason} ({type(error).__name__}: {_one_line(error)})") from None
    if faults := [*info["missing_keys"], *map(str, info["mismatched_keys"])]:
        raise InputError(
            f"{PREFIX}{name}: the weights are not whole ({len(faults)} missing or of another shape: {min(faults)})"
        )
    return model.eval(), processor


def holds_hf(checkpoint: object) -> bool:
    """Whether a checkpoint of this project holds a detector of the library."""
    return isinstance(checkpoint, dict) and PREFIX in (checkpoint.get("config") or {})


def build_from_checkpoint(path: str, checkpoint: dict) -> tuple[nn.Module, Any, int]:
    """A detector, its image processor and its class of people, out of a checkpoint of `train_detr.py`."""
    hf = load_transformers()
    try:
        config = checkpoint["config"][PREFIX]
        kind = getattr(hf, config["processor"]["image_processor_type"])
        if not issubclass(kind, hf.image_processing_utils.BaseImageProcessor):
            raise TypeError(f"{kind.__name__} is not an image processor")
        settings = hf.AutoConfig.for_model(**config["model"])
        model = hf.AutoModelForObjectDetection.from_config(settings)
        processor, label = kind.from_dict(config["processor"]), int(config["person_label"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a detector that train_detr.py left ({_one_line(error)})") from None
    load_weights(model, checkpoint["model"], path)
    return model.eval(), processor, label


def load(
    name: str,
    checkpoint: dict | None = None,
    device: torch.device | str = "cpu",
    image_size: int = 0,
    person_label: str | int | None = None,
) -> "HFDetector":
    """The detector `hf:<name or folder>`, or that of a checkpoint of `train_detr.py` whose path `name` is.

    Args:
        image_size: 0: as the image processor says; else the longer side, or both of a model that takes squares.
        person_label: a label or a class number; None: that of the checkpoint, or "person".
    """
    if checkpoint is None:
        model, processor = load_pretrained(name.removeprefix(PREFIX))
    else:
        model, processor, trained = build_from_checkpoint(name, checkpoint)
        person_label = trained if person_label is None else person_label
    if image_size:
        names = ("height", "width") if processor.size.get("height") else ("shortest_edge", "longest_edge")
        processor.size = type(processor.size)(**dict.fromkeys(names, image_size))
    return HFDetector(model, processor, name, torch.device(device), person_label)


def person_class(labels: dict[int, str], person_label: str | int | None, name: str) -> int:
    """The class of people in a model's label map; `person_label`, a label or a number, names another than "person"."""
    labels = {int(number): str(label) for number, label in labels.items()}
    named = {label.lower(): number for number, label in reversed(labels.items())}
    text = "person" if person_label is None else str(person_label).lower()
    if text.isdecimal() and int(text) in labels:
        return int(text)
    if text in named:
        return named[text]
    shown = ", ".join(f"{number} {label}" for number, label in list(labels.items())[:8])
    raise InputError(
        f"{name}: has no class {text!r}; name one with --person_label ({shown}{', ...' * (len(labels) > 8)})"
    )


def frame_input(processor: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The function that turns uint8 frames of one size (b, 3, H, W) into a model's input, float32 (b, 3, h, w), as its
    image processor does.

    The processor itself makes the host wait for a GPU (it sends constants and reads them back). Its settings are
    applied here instead, and compared with it once; where it does something else, it is used after all.
    """
    statistics = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    mean, deviation = (torch.tensor(x, device=device).view(-1, 1, 1) for x in statistics)
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    factor, offset = scale / deviation, -mean / deviation

    def by_processor(images: Tensor) -> Tensor:
        return processor(images=list(images), return_tensors="pt", do_pad=False)["pixel_values"].to(images.device)

    def resized(images: Tensor, as_floats: bool = False) -> Tensor:
        """Resized as uint8 (most families), or as floats without smoothing (RF-DETR), then normalised."""
        images = images.float() if as_floats else images
        if processor.do_resize:
            options = {"resample": processor.resample, "antialias": not as_floats}
            images = processor.resize(images, size=processor.size, **options)
        return images.float().mul_(factor).add_(offset)

    draw = torch.Generator().manual_seed(0)
    probes = [torch.randint(256, (1, 3, *s), dtype=torch.uint8, generator=draw).to(device) for s in _PROBES]
    expected = [by_processor(probe) for probe in probes]
    for method in (resized, partial(resized, as_floats=True)):
        if all(torch.allclose(method(a), b, rtol=0, atol=1e-5) for a, b in zip(probes, expected, strict=True)):
            return method
    return by_processor


class HFDetector(nn.Module):
    """A detector of the library: images -> each query's person score, box and vector.

    Attributes:
        d: width of a query. num_queries: queries of a frame. n_layers: decoder layers.
        person_label: the class of people.
        softmax: whether one class is "no object"; else each class is scored by itself.

    Raises:
        InputError: the model gives no box or no vector of each query, or has no such class.
    """

    def __init__(
        self, model: nn.Module, processor: Any, name: str, device: torch.device, person_label: str | int | None = None
    ) -> None:
        super().__init__()
        self.model, self.processor, self.name = model.to(device), processor, name
        self.dtype: torch.dtype | None = None
        self.person_label = person_class(model.config.id2label, person_label, name)
        self.frame_input = frame_input(processor, device)
        self._taken: list[Tensor] = []  # the queries of `take_layer`
        out = self._answer()
        boxes, queries = (getattr(out, part, None) for part in ("pred_boxes", "last_hidden_state"))
        if boxes is None or queries is None or queries.shape[:2] != boxes.shape[:2]:
            raise InputError(f"{name}: gives no box and vector of each query, which query matching needs")
        others = out.logits.shape[-1] - model.config.num_labels
        if others not in (0, 1):
            raise InputError(f"{name}: gives {out.logits.shape[-1]} scores for {model.config.num_labels} classes")
        self.softmax = others == 1
        self.num_queries, self.d = queries.shape[1:]
        self.n_layers = len(self._layers()) or 1

    def _layers(self) -> nn.ModuleList | list:
        return getattr(getattr(self.model.model, "decoder", None), "layers", [])

    @torch.no_grad()
    def _answer(self) -> Any:
        """What the model gives for one frame."""
        frame = torch.zeros(1, 3, *_PROBES[0], dtype=torch.uint8, device=self.model.device)
        try:
            return self.model.eval()(pixel_values=self.prepare(frame)[0])
        except (RuntimeError, ValueError, AssertionError) as error:
            size = dict(self.processor.size)
            raise InputError(f"{self.name}: does not take frames of its size {size} ({_one_line(error)})") from None

    def take_layer(self, number: int) -> None:
        """Take queries from decoder layer `number`, from 1, normalised as the last layer's are."""
        norm = getattr(self.model.model.decoder, "layernorm", None) or nn.Identity()

        def keep(_module: nn.Module, _given: tuple, out: Any) -> None:
            self._taken[:] = [norm(out if torch.is_tensor(out) else out[0])]

        hook = self._layers()[-1].register_forward_hook(keep)  # what is known to be true of the last layer
        last = self._answer().last_hidden_state
        hook.remove()
        if not torch.allclose(self._taken[0], last, atol=1e-4):
            raise InputError(f"--query_layer: {self.name} does not give its decoder layers' queries one by one")
        self._layers()[number - 1].register_forward_hook(keep)

    def config(self) -> dict:
        """What a checkpoint needs to build this detector again, in plain types."""
        settings = {"model": self.model.config.to_dict(), "processor": self.processor.to_dict()}
        return {PREFIX: json.loads(json.dumps({**settings, "person_label": self.person_label}, default=str))}

    def settings_key(self) -> str:
        """Names what changes its answers beside its weights: family, size, and a checksum of the settings of model and
        image processor."""
        size = "x".join(str(value) for value in dict(self.processor.size).values() if value)
        settings = [self.model.config.to_diff_dict() | {"transformers_version": None}, self.processor.to_dict()]
        settings = json.dumps(settings, sort_keys=True, default=str)
        return f"{self.model.config.model_type}-{size}-{checksum(settings)}"

    def prepare(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (b, 3, H, W), `mask` (b, H, W) True on padding right and below -> the model's input and mask."""
        if mask is None or not mask.any():
            return self._pad(self.frame_input(images).contiguous(memory_format=torch.channels_last))
        sizes = torch.stack([(~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)], 1).tolist()
        parts = [self.frame_input(image[None, :, :h, :w]) for image, (h, w) in zip(images, sizes, strict=True)]
        same = len({part.shape for part in parts}) == 1
        return self._pad(torch.cat(parts) if same else [part[0] for part in parts])

    def _pad(self, images: Tensor | list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Images padded to the size that the image processor fixes, else to the largest of them."""
        fixed = getattr(self.processor, "pad_size", None) if getattr(self.processor, "do_pad", False) else None
        if not fixed:
            return (images, None) if torch.is_tensor(images) else pad_images(images)
        batch, mask = pad_images([*images, images[0].new_zeros(3, fixed["height"], fixed["width"])])
        return batch[:-1], mask[:-1]

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Images and mask of `prepare` -> `scores` (B, N) of people, `pred_boxes` (B, N, 4) cxcywh divided by the frame
        without padding, `queries` (B, N, d), all float32."""
        mixed = torch.autocast(images.device.type, self.dtype) if self.dtype else nullcontext()
        with mixed:
            out = self.model(pixel_values=images, pixel_mask=None if mask is None else (~mask).long())
        queries, logits = self._taken[0] if self._taken else out.last_hidden_state, out.logits.float()
        person = self.person_label
        scores = logits.softmax(-1)[..., person] if self.softmax else logits[..., person].sigmoid()
        return {"scores": scores, "pred_boxes": out.pred_boxes.float(), "queries": queries.float()}


@torch.no_grad()
def for_inference(detector: HFDetector, dtype: torch.dtype | None = None) -> HFDetector:
    """Make `detector` fast for inference, in place: BatchNorm folded into convolutions, channels last, layers in
    `dtype` (bfloat16 or float16; None: float32) but for those that give boxes and scores."""
    fuse(detector.eval().requires_grad_(False))
    detector.to(memory_format=torch.channels_last)
    # The library's checks of a batch's shapes make the host wait for a GPU; the probe has passed them.
    os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    detector.dtype = dtype
    if dtype is not None:
        exact: list[str] = []
        for name, module in detector.model.named_modules():
            if name.startswith(tuple(exact)):
                continue
            if _IN_FLOAT32.search(name) and not isinstance(module, nn.ModuleList):
                module.forward = in_float32(module.forward)
                exact.append(name + ".")
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype)
    return detector


def in_float32(function: Callable) -> Callable:
    """A function of tensors, or a layer's forward, in float32, whatever its input and the precision around it."""

    def exact(value: Any) -> Any:
        return value.float() if torch.is_tensor(value) and value.is_floating_point() else value

    def compute(*args: Any, **kwargs: Any) -> Any:
        device = next(value.device for value in (*args, *kwargs.values()) if torch.is_tensor(value))
        with torch.autocast(device.type, enabled=False):
            return function(*[exact(value) for value in args], **{name: exact(x) for name, x in kwargs.items()})

    return compute


class HFTraining(nn.Module):
    """A detector with its own loss: images and mask of `HFDetector.prepare` and targets -> its losses.

    Losses are computed in float32. Their weights are those of the model's configuration; each process divides by its
    own number of boxes.
    """

    def __init__(self, detector: HFDetector) -> None:
        super().__init__()
        self.model, self.person_label = detector.model, detector.person_label
        self.model.loss_function = torch.compiler.disable(in_float32(self.model.loss_function))

    def forward(self, images: Tensor, mask: Tensor | None, targets: list[dict]) -> dict[str, Tensor]:
        """`loss`, the sum that is minimised, and its parts by the library's names, earlier layers' with a suffix.

        `targets`: one dict an image, `boxes` (n, 4) cxcywh divided by the image without padding; n may be 0.
        """
        labels = []
        for boxes in (target["boxes"] for target in targets):
            people = torch.full((len(boxes),), self.person_label, device=boxes.device)
            labels.append({"boxes": boxes, "class_labels": people})
        out = self.model(pixel_values=images, pixel_mask=None if mask is None else (~mask).long(), labels=labels)
        loss = out.loss
        if world_size() > 1:  # what a batch without people leaves out has a gradient in every process
            loss = loss + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return {"loss": loss, **{name: torch.as_tensor(value) for name, value in out.loss_dict.items()}}
