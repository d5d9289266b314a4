"""What stands on an encoder for a task: a linear classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ClassifierConfig
from .encoder import VideoViT
from .masking import agnostic, key_noise, key_uniform, require, split_tokens, visible_count
from .transformer import Linear

DROPOUT, DROP_PATH = 1, 2  # streams of what is drawn from a clip's key


class Classifier(nn.Module):
    """Mean of the patch tokens, norm, dropout, linear (paper, section 4): the average comes before the norm.

    ``classifier(clip)`` gives logits (B, classes), a regression's values in their own unit. What is random in training
    follows from the clips' keys, so that it is the same in any batch and on any number of processes.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoViT(config.encoder)
        # The reference's tiny weights: a new head starts almost silent.
        self.head = Linear(config.encoder.blocks.width, config.classes, std=2e-5)
        for name in ("shift", "scale"):
            values = getattr(config, name)
            self.register_buffer(name, torch.empty(len(values)) if values else None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for name in ("shift", "scale"):
                if (buffer := getattr(self, name)) is not None:
                    buffer.copy_(torch.tensor(getattr(self.config, name)))

    def forward(self, clip: Tensor, *, keys: Tensor | None = None, mask_ratio: float = 0.0) -> Tensor:
        """Logits (B, classes) of clips (B, C, T, H, W); uint8, or float already normalised.

        Args:
            clip: the clips.
            keys: (B,) int64, one per clip, for dropout, drop path and the mask while training; drawn where None.
            mask_ratio: share of the tokens that is hidden from the encoder while training (paper, appendix B.3).

        Raises:
            UserError: clips or keys that do not fit.
        """
        patches, grid = self.encoder.cut(clip)
        if not self.training:
            tokens = self.encoder.encode(self.encoder.embed(patches, grid))
            return self.judge(self.encoder.norm(self.pool(tokens)))
        if keys is None:
            keys = torch.randint(2**62, (len(clip),), device=clip.device)
        require("the tensor of keys", keys, (len(clip),), torch.int64)
        visible = None
        if mask_ratio:
            count = visible_count(patches.shape[1], mask_ratio)
            visible, _ = split_tokens(agnostic(key_noise(keys, patches.shape[1]), count), count)
        tokens = self.encoder.encode(self.encoder.embed(patches, grid, visible), self._shares(keys))
        pooled = self.encoder.norm(self.pool(tokens))
        return self.judge(self._drop(pooled, keys))

    def pool(self, tokens: Tensor) -> Tensor:
        """The mean of the patch tokens: (B, [1 +] N, D) to (B, D)."""
        return tokens[:, int(self.config.encoder.class_token) :].mean(dim=1)

    def judge(self, features: Tensor) -> Tensor:
        """Logits of pooled and normed features (B, D); of a regression values in their own unit."""
        logits: Tensor = self.head(features)
        return logits if self.scale is None or self.shift is None else logits * self.scale + self.shift

    def scores(self, logits: Tensor) -> Tensor:
        """What the logits say: shares that sum to 1, for "multi" a probability for each class; a regression's as is."""
        if self.config.problem == "regression":
            return logits
        return logits.float().sigmoid() if self.config.problem == "multi" else logits.float().softmax(dim=-1)

    def _drop(self, features: Tensor, keys: Tensor) -> Tensor:
        """Dropout."""
        rate = self.config.dropout
        if not rate:
            return features
        kept = key_uniform(keys, features.shape[1], DROPOUT) >= rate
        return features * (kept / (1 - rate)).to(features.dtype)

    def _shares(self, keys: Tensor) -> Tensor | None:
        """Drop path (Huang et al. 2016): (B, depth, 2), 0 for branches that are left out; the mean stays 1."""
        depth, rate = self.config.encoder.blocks.depth, self.config.drop_path
        if not rate:
            return None
        rates = torch.linspace(0, rate, depth, dtype=torch.float64, device=keys.device)[:, None]
        drawn = key_uniform(keys, 2 * depth, DROP_PATH).unflatten(1, (depth, 2))
        return (drawn >= rates) / (1 - rates)
