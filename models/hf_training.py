"""Fine-tuning of `transformers`' detectors on boxes of people, by the loss that each has in the library."""

from argparse import Namespace
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.hf_detector import HFDetector, in_float32
from utils.cli import Parser
from utils.distributed import world_size
from utils.misc import InputError


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


def refuse_flags(args: Namespace, parser: Parser, names: Iterable[str]) -> None:
    """InputError for flags of DETR alone, on the command line or in a preset; `parser` has their defaults."""
    given = [name for name in names if getattr(args, name) != parser.action_of(name).default]
    if given:
        flags = ", ".join(f"--{name}" for name in given)
        remedy = f"add --preset_except {' '.join(given)}" if args.preset else "leave that out"
        raise InputError(f"{flags}: not with {args.detr}, which has its own architecture and loss; {remedy}")
