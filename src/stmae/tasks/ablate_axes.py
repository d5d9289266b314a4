"""What `stmae ablate` varies: an axis is a function from the options that all cells share to its cells.

One change at a time from the shared options. The cell that changes nothing is the same run in every axis, and is
trained once for all of them. An axis of one's own is a YAML file:

    cells:                                    # or grid: every combination
      plain: {}                               #   grid: {mask_ratio: [0.75, 0.9], decoder_depth: [1, 4]}
      shallow: {decoder_depth: 1}
      masked: {finetune: {mask_ratio: 0.5}}   # options of `stmae finetune`
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stmae.errors import UserError, did_you_mean
from stmae.tasks.checks import MODELS
from stmae.tasks.options import ModelOptions
from stmae.tasks.values import read_yaml
from stmae.weights import plain

JITTER = 0.4
LEAST_SHARE = 0.25  # of the videos, or of the budget


@dataclass(frozen=True)
class Variant:
    """One cell of an axis.

    Attributes:
        label: what differs, for people.
        changes: options of pre-training by name.
        finetune: options of fine-tuning by name.
        paper: the setting in the paper's table that it stands beside, or "".
        length: of pre-training, in budgets.
        share: of the videos that is trained on.
    """

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    length: float = 1.0
    share: float = 1.0

    def run(self, base: Mapping[str, Any]) -> str:
        """The name of its pre-training: what it changes of the shared options, in the options' order; else "base"."""
        changes = plain({name: value for name, value in self.changes.items() if plain({"": value}) != _of(base, name)})
        changes |= {"length": self.length} if self.length != 1 else {}
        changes |= {"share": self.share} if self.share != 1 else {}
        return _named(changes) or "base"

    @property
    def tuning(self) -> str:
        """The name of its fine-tuning: "finetune", and what it changes there."""
        named = _named(plain(self.finetune))
        return f"finetune+{named}" if named else "finetune"


def _of(base: Mapping[str, Any], name: str) -> Any:
    return plain({"": base[name]}) if name in base else None


def _named(changes: Mapping[str, Any]) -> str:
    """Changes as part of a file's name: readable, and with a hash where it would be long."""
    parts = [f"{name}={_word(value)}" for name, value in sorted(changes.items())]
    text = "+".join(parts)
    if len(text) > 100:
        return text[:90] + "-" + hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]
    return text


def _word(value: Any) -> str:
    text = "x".join(map(_word, value)) if isinstance(value, list) else f"{value:g}" if _number(value) else str(value)
    safe = re.sub(r"[^\w.\-]", "-", text)
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The paper's axes ----------------------------------------------------------------------------------------------------


def mask_ratio(base: ModelOptions) -> list[Variant]:
    """How much is hidden: 50, 75, 90, 95 % (Figure 6)."""
    return [Variant(f"{100 * ratio:g} %", {"mask_ratio": ratio}) for ratio in (0.5, 0.75, 0.9, 0.95)]


def mask_kind(base: ModelOptions) -> list[Variant]:
    """What is hidden together: single tokens, tubes, time steps, boxes, at their best ratios (Table 2a); what moves."""
    steps = getattr(base, "frames", 16) // base.patch[0]
    kinds = [("agnostic", 0.9), ("space", 0.9), ("time", 0.75), *([("time", 0.875)] * (steps >= 8)), ("block", 0.75),
             ("motion", 0.9)]  # fmt: skip
    return [
        Variant(f"{kind} {100 * ratio:g} %", {"mask": kind, "mask_ratio": ratio}, paper=f"{kind} {100 * ratio:g}")
        for kind, ratio in kinds
    ]


def target(base: ModelOptions) -> list[Variant]:
    """What is predicted: pixels, normalised ones, HOG, tokens (Table 2b); colour by colour; features of a teacher."""
    hog = [Variant("HOG", {"target": "hog"}, paper="HOG")] if not any(side % 8 for side in base.patch[1:]) else []
    return [
        Variant("pixels", {"target": "pixels"}, paper="pixels"),
        Variant("normalized pixels", {"target": "normalized_pixels"}, paper="normalized pixels"),
        Variant("normalized per channel", {"target": "normalized_pixels_per_channel"}),
        *hog,
        Variant("tokens", {"target": "tokens"}, paper="dVAE tokens"),
        Variant("own average as teacher", {"target": "teacher", "teacher": "self", "ema": 0.999}),
    ]


def repeats(base: ModelOptions) -> list[Variant]:
    """Clips taken from a video each time it is opened: 1, 2, 4 (Table 2d)."""
    return [Variant(str(count), {"repeats": count}, paper=str(count)) for count in (1, 2, 4)]


def decoder_width(base: ModelOptions) -> list[Variant]:
    """The decoder's width: a quarter, half and twice the usual (Table 2e: 128 to 1024)."""
    head = max(1, base.decoder_width // base.decoder_heads)
    found = []
    for factor, paper in ((0.25, "128"), (0.5, "256"), (1, "512"), (2, "1024")):
        width = max(1, int(base.decoder_width * factor))
        heads = max(n for n in range(1, max(1, width // head) + 1) if width % n == 0)
        found.append(Variant(f"{width}", {"decoder_width": width, "decoder_heads": heads}, paper=paper))
    return found


def decoder_depth(base: ModelOptions) -> list[Variant]:
    """Blocks in the decoder: 1, 2, 4, 8 (Table 2f)."""
    return [Variant(str(depth), {"decoder_depth": depth}, paper=str(depth)) for depth in (1, 2, 4, 8)]


def encoder(base: ModelOptions) -> list[Variant]:
    """What the encoder sees: visible tokens only, or mask tokens too, with the decoder (Table 1) or a linear layer."""
    return [
        Variant("visible tokens only", {"mask_tokens_in_encoder": False}, paper="visible tokens only"),
        Variant("with mask tokens", {"mask_tokens_in_encoder": True}, paper="with mask tokens"),
        Variant("with mask tokens, linear", {"mask_tokens_in_encoder": True, "decoder": "linear"}),
    ]


def decoder(base: ModelOptions) -> list[Variant]:
    """How hidden tokens are predicted: attention to all tokens or to visible ones alone; all of them or half."""
    return [
        Variant("self-attention", {"decoder": "self_attention"}),
        Variant("cross-attention", {"decoder": "cross_attention"}),
        Variant("a random half", {"decode": "random", "decode_share": 0.5}),
        Variant("half by running cells", {"decode": "running_cell", "decode_share": 0.5}),
    ]


def augmentation(base: ModelOptions) -> list[Variant]:
    """Random crops: none, [0.5, 1], [0.08, 1] of the frame's area; and colour jitter (Table 2c)."""
    whole = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
    return [
        Variant("none", {**whole, "flip": False}, paper="none"),
        Variant("crop 0.5 to 1", {"crop_area": (0.5, 1.0)}, paper="crop 0.5 to 1"),
        Variant("crop 0.08 to 1", {"crop_area": (0.08, 1.0)}, paper="crop 0.08 to 1"),
        Variant(
            "crop 0.5 to 1 and colour jitter",
            {"crop_area": (0.5, 1.0), "color_jitter": JITTER},
            paper="crop 0.5 to 1 and colour jitter",
        ),
    ]


def epochs(base: ModelOptions) -> list[Variant]:
    """How long: a quarter, half, all of the budget (Table 4: 200, 400, 800 epochs)."""
    lengths = (("a quarter", 0.25, "200"), ("half", 0.5, "400"), ("all", 1.0, "800"))
    return [Variant(f"{label} of the clips", length=length, paper=paper) for label, length, paper in lengths]


def data(base: ModelOptions) -> list[Variant]:
    """How many videos the same number of clips is taken from: a quarter, half, all (the paper's Table 4 has others)."""
    return [Variant(f"{100 * share:g} % of the videos", share=share) for share in (LEAST_SHARE, 0.5, 1.0)]


def model_size(base: ModelOptions) -> list[Variant]:
    """The encoder's size: the shared one, and those beside it (Table 7)."""
    place = MODELS.index(base.model)
    first = min(max(0, place - 1), len(MODELS) - 3)
    paper = {"vit_base": "ViT-B", "vit_large": "ViT-L", "vit_huge": "ViT-H"}
    return [Variant(size, {"model": size}, paper=paper.get(size, "")) for size in MODELS[first : first + 3]]


def finetune_mask(base: ModelOptions) -> list[Variant]:
    """Hiding tokens in fine-tuning, a share that falls to none (Table 11)."""
    return [
        Variant(f"{100 * ratio:g} % falling to none" if ratio else "none", finetune={"mask_ratio": ratio}, paper=paper)
        for ratio, paper in ((0.0, "none"), (0.5, "0.5"), (0.75, "0.75"))
    ]


AXES: dict[str, Callable[[Any], list[Variant]]] = {
    "mask-ratio": mask_ratio,
    "mask-kind": mask_kind,
    "target": target,
    "augmentation": augmentation,
    "repeats": repeats,
    "decoder-width": decoder_width,
    "decoder-depth": decoder_depth,
    "encoder": encoder,
    "decoder": decoder,
    "epochs": epochs,
    "data": data,
    "model-size": model_size,
    "finetune-mask": finetune_mask,
}


# One's own -----------------------------------------------------------------------------------------------------------


def axis_name(axis: str) -> str:
    """An axis as it is called in results: its name, or that of its file."""
    return axis if axis in AXES else Path(axis).stem


def variants_of(axis: str, base: Any) -> list[Variant]:
    """The cells of an axis, by its name or its YAML file."""
    return AXES[axis](base) if axis in AXES else read_axis(Path(axis))


def read_axis(path: Path) -> list[Variant]:
    """An axis of one's own.

    Raises:
        UserError: no such file, or it holds neither `cells` nor `grid`.
    """
    content = dict(read_yaml(path))
    form = "Give `cells: {name: {option: value}}` or `grid: {option: [values]}`."
    kind = next((key for key in ("cells", "grid") if key in content), None)
    if kind is None or len(content) != 1 or not isinstance(content[kind], dict) or not content[kind]:
        raise UserError(f'axis "{path}" is not one mapping of cells or one grid.', form)
    if kind == "grid":
        names = list(content[kind])
        lists = [value if isinstance(value, list) else [value] for value in content[kind].values()]
        rows = [dict(zip(names, values, strict=True)) for values in itertools.product(*lists)]
        return [Variant(", ".join(f"{k} {_shown(v)}" for k, v in row.items()), row) for row in rows]
    found = []
    for label, changes in content[kind].items():
        changes = dict(changes or {}) if isinstance(changes or {}, dict) else changes
        if not isinstance(changes, dict) or not isinstance(changes.get("finetune", {}), dict):
            raise UserError(f'cell "{label}" of axis "{path}" is no mapping of options to values.', form)
        tuning = changes.pop("finetune", {})
        found.append(Variant(str(label), changes, finetune=tuning))
    return found


def unknown_axis(axis: str) -> UserError:
    """The error for an axis that is neither known nor a file."""
    hint = did_you_mean(axis, [*AXES, "all"])
    known = f"Known: {', '.join(AXES)}, all, or a YAML file."
    return UserError(f'axis "{axis}" is not known, and there is no such file.', f"{hint} {known}".strip())


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
