"""A classifier on its device, and its outputs' names: what `stmae evaluate` and `stmae predict` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from stmae.data.media import kind_of
from stmae.data.sources import Source, names_of
from stmae.data.views import Places
from stmae.errors import UserError
from stmae.interop.native import load_with_extras
from stmae.model.config import ClassifierConfig, ClipConfig
from stmae.model.heads import Classifier
from stmae.tasks import build
from stmae.tasks.features import VideoRows, through


class LoadedClassifier:
    """A classifier and how it is shown videos.

    Args:
        options: with `model`, `device`, `precision`, `batch_size` and `workers`.

    Raises:
        UserError: what is there is no classifier, or the device is not.
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        self.device = build.pick_device(options.device)
        self.precision, _ = build.pick_precision(options.precision, self.device)
        model, self.extras = load_with_extras(options.model)
        if not isinstance(model, Classifier):
            raise UserError(
                f'"{options.model}" holds no classifier, only an encoder.',
                "Fine-tune it with `stmae finetune`, or judge its features with `stmae knn` or `stmae probe`.",
            )
        self.model = model.to(self.device).eval()

    @property
    def config(self) -> ClassifierConfig:
        return self.model.config

    @property
    def clip(self) -> ClipConfig:
        return self.config.encoder.clip

    @property
    def segments(self) -> bool:
        """Whether it sees frames spread over whole videos."""
        return bool(self.extras.get("clip", {}).get("sampling") == "segments")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs; numbers where the weights do not name them."""
        return self.config.class_names or tuple(map(str, range(self.config.classes)))

    def views(self, source: Source, usual: int) -> int:
        """How many views a video gets: as asked, or as is usual; of pictures that stand still one says all."""
        if self.options.views is not None:
            return int(self.options.views)
        return 1 if self.segments or all(kind_of(name) == "image" for name in names_of(source)) else usual

    def scores(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) to shares, probabilities or values (B, outputs)."""
        return self.model.scores(self.model(clips))

    def through(
        self, source: Source, places: Places, crops: int = 1, model: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[VideoRows]:
        """Its scores of each view, video by video; or what else `model` makes of the clips."""
        return through(
            model or self.scores, source, places, clip=self.clip, extras=self.extras, options=self.options,
            device=self.device, precision=self.precision, crops=crops,
        )  # fmt: skip
