"""What stands on an encoder for a task: a linear classifier."""

from __future__ import annotations

from torch import Tensor, nn

from .config import ClassifierConfig
from .encoder import VideoViT
from .transformer import Linear


class Classifier(nn.Module):
    """Mean of the patch tokens, norm, dropout, linear (paper, section 4): the average comes before the norm.

    ``classifier(clip)`` gives logits (B, classes).
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoViT(config.encoder)
        self.dropout = nn.Dropout(config.dropout)
        # The reference's tiny weights: a new head starts almost silent.
        self.head = Linear(config.encoder.blocks.width, config.classes, std=2e-5)

    def forward(self, clip: Tensor) -> Tensor:
        patches, grid = self.encoder.cut(clip)
        tokens = self.encoder.encode(self.encoder.embed(patches, grid))
        pooled = tokens[:, int(self.config.encoder.class_token) :].mean(dim=1)
        return self.head(self.dropout(self.encoder.norm(pooled)))
