"""The person encoder f_p of the query matching module and the loss that trains it."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.weights import checkpoint_path, load_weights, weights_hash
from utils.distributed import gather_rows, rank, world_size
from utils.storage.files import load_checkpoint

ID_STEP = 2**32  # between the person ids, and the clips, of two processes, which stay distinct when gathered
NEEDED = ("encoder.in_d", "encoder.out_d", "encoder.skip", "detector.source", "detector.weights", "detector.square",
          "detector.query_layer", "detector.person_label", "detector.key", "detector.image_size")  # fmt: skip
"""What a checkpoint's config must say."""


class PersonEncoder(nn.Module):
    """f_p: decoder queries (..., in_d) -> person features (..., out_d); those of one person come close in cosine
    similarity.

    Three linear layers with ReLU and dropout between them. With `skip` the weights start from N(0, 0.01)
    and the input is added to the output (in_d == out_d), so that training starts from DETR's own queries.
    """

    def __init__(
        self, in_d: int = 256, out_d: int = 256, skip: bool = False, hidden_d: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if skip and in_d != out_d:
            raise ValueError(f"a skip connection needs in_d == out_d, not {in_d} and {out_d}")
        hidden_d = hidden_d or out_d
        self.skip = skip
        self.layers = nn.Sequential(
            nn.Linear(in_d, hidden_d),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_d, hidden_d),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_d, out_d),
        )
        if skip:
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.01)
                    nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor) -> Tensor:
        features = self.layers(queries)
        return queries + features if self.skip else features


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> tuple[PersonEncoder, dict, int]:
    """The encoder of a checkpoint of `train_qmm.py`, in evaluation mode; its config and epoch.

    InputError when the file is something else.
    """
    path = checkpoint_path(path, "encoder")
    checkpoint = load_checkpoint(path, "person encoder", NEEDED, "train_qmm.py")
    config = checkpoint["config"]
    encoder = PersonEncoder(**config["encoder"])
    load_weights(encoder, checkpoint["model"], path)
    return encoder.to(device).eval(), config, checkpoint["epoch"]


def encoder_hash(path: Path) -> str:
    """`weights_hash` of the encoder that `load_encoder` makes of a checkpoint."""
    state = load_checkpoint(path, "person encoder")["model"]
    return weights_hash({name: value.float() for name, value in state.items()})  # exported ones are in half precision


def encode(encoder: PersonEncoder, queries: np.ndarray) -> np.ndarray:
    """Queries float32 (n, d) -> person features float32 (n, d'), on the encoder's device."""
    with torch.inference_mode():
        device = next(encoder.parameters()).device
        return encoder(torch.from_numpy(queries).to(device)).float().cpu().numpy()


class NPairLoss(nn.Module):
    """Multi-positive N-pair loss over cosine similarities (Sohn 2016, with several positives an anchor).

    For an anchor i with positives P(i) (other embeddings of the same person) and all others A(i):
    -log(sum of exp(cos(i, p) / tau) over P(i) / sum of exp(cos(i, a) / tau) over A(i)); the loss is the
    mean over the anchors that have a positive, and 0 (with a gradient of 0) when none has.

    Args:
        tau: temperature.
        same_clip: negatives of the anchor's own clip weigh exp(same_clip) times in the sum over A(i).
    """

    def __init__(self, tau: float = 1.0, same_clip: float = 0.0) -> None:
        super().__init__()
        self.tau, self.same_clip = tau, same_clip

    def forward(self, embs: Tensor, labels: Tensor, clips: Tensor | None = None) -> Tensor:
        """`embs` float (M, d), `labels` int (M,) person identities, and where `same_clip` is not 0 `clips` int (M,);
        returns a scalar float32."""
        unit = F.normalize(embs.float(), dim=1)
        with torch.autocast(embs.device.type, enabled=False):  # 16 bits of a cosine over a small `tau` are too few
            similarity = unit @ unit.T / self.tau
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive = (labels[:, None] == labels[None, :]) & ~itself
        anchors = positive.any(1)
        lowest = torch.finfo(similarity.dtype).min
        if self.same_clip:
            similarity = similarity + self.same_clip * ((clips[:, None] == clips[None, :]) & ~positive)
        all_others = similarity.masked_fill(itself, lowest).logsumexp(1)
        positives = similarity.masked_fill(~positive, lowest).logsumexp(1)
        losses = torch.where(anchors, all_others - positives, 0.0)
        return losses.sum() / anchors.sum().clamp(min=1)


def joined(features: Tensor, ids: Tensor, clips: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The features (M, d), `ids` (M,) and `clips` (M,) of all processes; the others' features come without a
    gradient."""
    if world_size() == 1:
        return features, ids, clips
    features = features.float()
    parts = gather_rows(features)
    parts[rank()] = features
    ids, clips = (
        None if column is None else torch.cat(gather_rows(column + rank() * ID_STEP)) for column in (ids, clips)
    )
    return torch.cat(parts), ids, clips


def joined_loss(criterion: NPairLoss, features: Tensor, ids: Tensor, clips: Tensor | None = None) -> Tensor:
    """The N-pair loss over what `joined` gives.

    DDP averages the processes' gradients, which divides the joint one by their number, so each is multiplied by it; the
    loss's value is not.
    """
    loss = criterion(features, ids, clips)
    return loss if world_size() == 1 else loss + (world_size() - 1) * (loss - loss.detach())
