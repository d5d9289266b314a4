"""What the paper measured where it varied its method, as far as it could be established; with the table's number.

"Masked Autoencoders As Spatiotemporal Learners" (arXiv 2205.09113): top-1 on Kinetics-400 after fine-tuning, in per
cent. ViT-L, 800 epochs of pre-training and 100 of fine-tuning, unless a note says otherwise. What is not in here, the
ratios of Figure 6 among it, could not be established.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MEASURE = "top-1 on Kinetics-400, ViT-L, 800 epochs"


@dataclass(frozen=True)
class Table:
    """One of the paper's ablations.

    Attributes:
        where: the table it stands in.
        accuracy: by the setting, as the paper names it.
        speed: how many times as fast as the slowest it trains, where the paper says so.
        note: what else must be known.
    """

    where: str
    accuracy: dict[str, float]
    speed: dict[str, float] = field(default_factory=dict)
    note: str = ""


TABLES: dict[str, Table] = {
    "mask-kind": Table(
        "Table 2a", {"agnostic 90": 84.4, "space 90": 83.5, "time 75": 79.1, "time 87.5": 75.4, "block 75": 83.2}
    ),
    "target": Table(
        "Table 2b",
        {"pixels": 83.8, "normalized pixels": 84.4, "HOG": 84.0, "dVAE tokens": 83.8},
        note="dVAE tokens train 1.6x slower; the paper's tokenizer is another one than ours",
    ),
    "augmentation": Table(
        "Table 2c",
        {"none": 83.9, "crop 0.5 to 1": 84.4, "crop 0.08 to 1": 83.4, "crop 0.5 to 1 and colour jitter": 83.8},
        note="how strong the paper's colour jitter is, is not known",
    ),
    "repeats": Table("Table 2d", {"1": 83.7, "2": 84.3, "4": 84.4}, speed={"1": 1.0, "2": 1.8, "4": 3.0}),
    "decoder-width": Table("Table 2e", {"128": 80.8, "256": 83.1, "512": 84.4, "1024": 83.7}),
    "decoder-depth": Table("Table 2f", {"1": 83.2, "2": 83.6, "4": 84.4, "8": 84.3}),
    "encoder": Table(
        "Table 1",
        {"with mask tokens": 84.3, "visible tokens only": 84.4},
        speed={"with mask tokens": 1.0, "visible tokens only": 5.8},
        note="speed of computing alone; 4.1x with loading",
    ),
    "epochs": Table("Table 4", {"200": 81.5, "400": 83.3, "800": 84.4}, note="pre-trained on Kinetics-400"),
    "data": Table(
        "Table 4",
        {
            "Kinetics-400, 240k": 84.4,
            "IG-curated, 240k": 83.2,
            "IG-curated, 512k": 83.9,
            "IG-curated, 1M": 84.2,
            "IG-uncurated, 1M": 84.4,
        },
    ),
    "model-size": Table("Table 7", {"ViT-B": 81.3, "ViT-L": 84.8, "ViT-H": 85.1}, note="ViT-L with 1600 epochs"),
    "finetune-mask": Table(
        "Table 11", {"none": 84.4, "0.5": 84.1, "0.75": 83.8}, speed={"none": 1.0, "0.5": 1.2, "0.75": 1.3}
    ),
}
