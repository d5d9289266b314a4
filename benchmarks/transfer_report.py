"""The report of benchmarks/transfer.py: from the cells' result files alone, a page and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 10_000
SUCCESS = 10.0  # points that the experiment aims at


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, in points (per cent)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


class Results:
    """The result files of a folder, and what the test predictions in them say.

    Attributes:
        cells: by name.
        labels, clusters: of the test clips (N,).
    """

    def __init__(self, folder: Path) -> None:
        self.cells: dict[str, dict[str, Any]] = {
            path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))
        }
        task = self.cells["task"]
        self.labels = _numbers(task["labels"])
        _, self.clusters = np.unique(task["clusters"], return_inverse=True)
        self.size = task["size"]

    def right(self, predictions: str) -> np.ndarray:
        """Whether each test clip is told rightly, summed by cluster: (clusters,)."""
        return np.bincount(self.clusters, _numbers(predictions) == self.labels, minlength=int(self.clusters.max()) + 1)

    def arm(self, name: str, labels: int) -> np.ndarray | None:
        """(seeds, clusters) of "scratch", "longer" or "mae0", up to the first seed that is missing; None for none."""
        rows = []
        for seed in range(5):
            cell = self.cells.get(f"{name}-{labels}-s{seed}")
            if cell is None:
                break
            rows.append(self.right(cell["predictions"]))
        return np.stack(rows) if rows else None

    def mae(self, labels: int) -> np.ndarray | None:
        """(pre-trainings, seeds, clusters) of the pre-trainings that were judged with as many seeds as the first."""
        found = [arm for p in range(3) if (arm := self.arm(f"mae{p}", labels)) is not None]
        return np.stack([arm[: len(found[0])] for arm in found if len(arm) >= len(found[0])]) if found else None

    def probe(self, name: str, labels: int) -> np.ndarray | None:
        """(encoders, seeds, clusters) of the attentive probe on "mae" or "random" encoders."""
        found = []
        for p in range(3):
            told = self.cells.get(f"frozen-{name}{p}", {}).get("predictions", {})
            rows = [self.right(told[f"{labels}-s{seed}"]) for seed in range(5) if f"{labels}-s{seed}" in told]
            found += [np.stack(rows)] if rows else []
        return np.stack(found) if found else None

    def spent(self, *names: str) -> float:
        """CPU minutes of cells, the mean over those there are."""
        found = [self.cells[name]["cpu_seconds"] for name in names if name in self.cells]
        return float(np.mean(found)) / 60 if found else 0.0


def estimate(results: Results, arm: np.ndarray, other: np.ndarray | None = None, draws: int = DRAWS) -> Estimate:
    """Accuracy of an arm, or how much better it is than another, by a bootstrap over clusters, seeds and pre-trainings.

    Both arms answer the same clips, and seed s of both was given the same labels: clusters and seeds are drawn once
    for both, so that what is hard for both cancels; pre-trainings are drawn for the arm that has them. Of n seeds or
    pre-trainings n - 1 are drawn each time, with replacement: so few drawn n at a time vary too little, by (n - 1) / n.

    Args:
        arm, other: right answers, ([pre-trainings,] seeds, clusters).
    """
    rng = np.random.default_rng(0)
    totals = np.bincount(results.clusters).astype(float)
    arms = [each if each.ndim == 3 else each[None] for each in (arm, other) if each is not None]
    count = min(each.shape[1] for each in arms)  # a comparison is between the same seeds
    arms = [each[:, :count] for each in arms]
    sign = (1.0, -1.0)
    mean = sum(s * each.mean(axis=(0, 1)).sum() for s, each in zip(sign, arms, strict=False)) / totals.sum()
    found = np.empty(draws)
    for draw in range(draws):
        clusters = np.bincount(rng.integers(0, len(totals), len(totals)), minlength=len(totals))
        seeds = rng.integers(0, count, max(1, count - 1))
        value = 0.0
        for s, each in zip(sign, arms, strict=False):
            chosen = each[rng.integers(0, len(each), max(1, len(each) - 1))][:, seeds]
            value += s * float(chosen.mean(axis=(0, 1)) @ clusters)
        found[draw] = value / float(totals @ clusters)
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(100 * float(mean), 100 * float(low), 100 * float(high))


# The page ------------------------------------------------------------------------------------------------------------


def costs(results: Results, labels: int) -> dict[str, float]:
    """CPU minutes that each arm takes: what is trained for one classifier, without the choice of settings."""
    pre = results.spent(*(f"pretrain-{p}" for p in range(3)))
    return {
        "from scratch": results.spent(*(f"scratch-{labels}-s{s}" for s in range(5))),
        "from scratch, equal total time": results.spent(*(f"longer-{labels}-s{s}" for s in range(5))),
        "MAE, fine-tuned": pre + results.spent(*(f"mae{p}-{labels}-s{s}" for p in range(3) for s in range(5))),
    }


def arms_of(results: Results, labels: int) -> dict[str, np.ndarray]:
    """The arms of which there are results."""
    found = {
        "from scratch": results.arm("scratch", labels),
        "from scratch, equal total time": results.arm("longer", labels),
        "MAE, fine-tuned": results.mae(labels),
        "MAE, frozen, attentive probe": results.probe("mae", labels),
        "random, frozen, attentive probe": results.probe("random", labels),
    }
    return {name: arm for name, arm in found.items() if arm is not None}


def verdict(results: Results) -> list[str]:
    """The endpoint in words."""
    arms = arms_of(results, 256)
    lines = []
    for base in ("from scratch", "from scratch, equal total time"):
        if base not in arms or "MAE, fine-tuned" not in arms:
            lines.append(f"MAE against {base}: not all cells have run.")
            continue
        gain = estimate(results, arms["MAE, fine-tuned"], arms[base])
        sure = "above 0: pre-training pays" if gain.low > 0 else "below 0: it harms" if gain.high < 0 else "0 within it"
        aim = "reached" if gain.mean >= SUCCESS else "not reached"
        runs = " and ".join("x".join(map(str, arms[name].shape[:-1])) for name in ("MAE, fine-tuned", base))
        many, seeds = arms["MAE, fine-tuned"].shape[0], min(arms[name].shape[-2] for name in ("MAE, fine-tuned", base))
        said = f"95 % interval {sure}; the aim of 10 points is {aim}" if many > 1 and seeds > 1 else "no verdict yet"
        lines.append(f"MAE against {base}, 256 labels: **{gain} points** ({said}; {runs} runs).")
    return lines


def page(results: Results, figure: str) -> str:
    footage, size = results.cells["task"]["footage"], results.size
    lines = [
        "# Does pre-training pay? motion-8",
        "",
        "Written by `python benchmarks/transfer.py --report` from the cells' result files; the design, fixed before a"
        " test score existed, is docs/transfer-design.md.",
        "",
        *(f"- {line}" for line in verdict(results)),
        "",
        f"![accuracy and total CPU time of the arms]({figure})",
        "",
        f"Footage {footage['identity']}: {footage['videos']} videos, {footage['frames']} frames; clusters in"
        f" training / validation / test {footage['train']['clusters']} / {footage['val']['clusters']} /"
        f" {footage['test']['clusters']}. Test: {len(results.labels)} clips; chance 12.5 %. Encoder"
        f" {size['width']} x {size['depth']}, pre-training {size['pretrain_steps'] * size['pretrain_batch']:,} clips.",
        "",
    ]
    for labels in (256, 2048):
        arms, spent = arms_of(results, labels), costs(results, labels)
        if not arms:
            continue
        lines += [
            f"## {labels:,} labels", "", "| arm | accuracy, % | against scratch, points | CPU minutes | runs |",
            "|---|---|---|---|---|",
        ]  # fmt: skip
        base = arms.get("from scratch")
        for name, arm in arms.items():
            gain = estimate(results, arm, base) if base is not None and name != "from scratch" else "-"
            runs = "x".join(map(str, arm.shape[:-1]))
            minutes = f"{spent[name]:.1f}" if name in spent else "-"
            lines.append(f"| {name} | {estimate(results, arm)} | {gain} | {minutes} | {runs} |")
        lines.append("")
    lines += _others(results) + _real(results)
    return "\n".join(lines) + "\n"


def _others(results: Results) -> list[str]:
    """Settings, gates, controls, kNN, secondary tasks and what is missing."""
    cells, lines = results.cells, ["## Settings, by validation accuracy", ""]
    for name in sorted(cells):
        if name.startswith("tune-"):
            lr, decay = cells[name]["setting"]
            lines.append(f"- {name}: lr {lr:g}, layer decay {decay:g}: {100 * cells[name]['val_accuracy']:.1f} %")
    lines += ["", "## Did pre-training learn motion? (gate: ratio at least 1.05)", ""]
    for name in sorted(cells):
        if name.startswith("gate-"):
            loss = cells[name]["loss"]
            lines.append(
                f"- {name}: held-out loss {loss['in order']} in order, {loss['in disorder']} with the clip's steps in"
                f" disorder: ratio {cells[name]['ratio']}, {'passed' if cells[name]['passed'] else 'NOT passed'}."
            )
    if "controls" in cells:
        found = cells["controls"]
        lines += ["", f"## Controls ({found['clips']} test clips, accuracy in %)", ""]
        lines.append(
            f"- phase correlation of neighbouring frames, without learning: {100 * found['phase correlation']:.1f}"
        )
        for name in ("scratch-256-s0", "mae0-256-s0"):
            told = "; ".join(f"{kind} {100 * value:.1f}" for kind, value in found[name].items())
            lines.append(f"- {name}: {told}")
    if "no-motion-256-s0" in cells:
        lines.append(
            f"- trained and tested on the first frame repeated: {100 * cells['no-motion-256-s0']['accuracy']:.1f}"
        )
    lines += ["", "## Frozen encoders, accuracy in %", ""]
    for name in sorted(cells):
        if name.startswith("frozen-"):
            for kind in ("attentive", "knn"):
                told = ", ".join(f"{run} {100 * value:.1f}" for run, value in cells[name][kind].items())
                lines.append(f"- {name}, {kind}: {told}")
        if name.startswith("time-"):
            told = "; ".join(
                f"{kind} {100 * cells[name][kind]['accuracy']:.1f} (chance {100 * cells[name][kind]['chance']:.1f})"
                for kind in ("speed", "arrow")
            )
            lines.append(f"- {name}, playback speed and arrow of time, attentive probe, 2,048 labels: {told}")
    return lines


def _real(results: Results) -> list[str]:
    """Real labels (benchmarks/transfer_real.py): both arms over the folds that both have, and their difference."""
    sets = sorted({cell["set"] for name, cell in results.cells.items() if name.startswith("real-") and "set" in cell})
    lines = []
    for name in sets:
        folds = [
            (scratch, mae)
            for number in range(5)
            if (scratch := results.cells.get(f"real-{name}-scratch-f{number}"))
            and (mae := results.cells.get(f"real-{name}-mae-f{number}"))
        ]
        lines += _real_set(name, folds) if folds else []
    head = ["", "## Real labels (`benchmarks/transfer_real.py`; pre-trained on other footage)", ""]
    return [*head, *lines] if lines else []


def _real_set(name: str, folds: Sequence[tuple[dict[str, Any], dict[str, Any]]], draws: int = DRAWS) -> list[str]:
    _, groups = np.unique(np.concatenate([mae["clusters"] for _, mae in folds]), return_inverse=True)
    labels = _numbers("".join(mae["labels"] for _, mae in folds))
    told = {
        arm: {key: _numbers("".join(pair[n][key] for pair in folds)) for key in ("predictions", "backwards")}
        for n, arm in enumerate(("scratch", "mae"))
    }
    scratch, mae = (told[arm]["predictions"] == labels for arm in ("scratch", "mae"))
    totals, gains = np.bincount(groups), np.bincount(groups, mae.astype(float) - scratch)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(totals), (draws, len(totals)))
    low, high = np.quantile(gains[drawn].sum(axis=1) / totals[drawn].sum(axis=1), [0.025, 0.975])
    gain = Estimate(100 * float(mae.mean() - scratch.mean()), 100 * float(low), 100 * float(high))
    most = np.bincount(labels).max() / len(labels)
    lines = [
        f"**{name}**: {len(mae)} clips of {len(totals)} sources in {len(folds)} of 5 folds by source, largest class"
        f" {100 * most:.1f} %: from scratch {100 * scratch.mean():.1f} %, MAE {100 * mae.mean():.1f} %, difference"
        f" {gain} points.",
        "",
    ]
    for n, arm in enumerate(("scratch", "mae")):
        fitted = 100 * float(np.mean([pair[n]["train_accuracy"] for pair in folds]))
        changed = 100 * float((told[arm]["predictions"] != told[arm]["backwards"]).mean())
        lines.append(
            f"- {arm}: {fitted:.1f} % right on what it was trained on; played backwards, {changed:.1f} % of the answers"
            " change."
        )
    return [*lines, "", *_confusion(name, folds[0][1]["classes"], labels, told), ""]


def _confusion(name: str, classes: Sequence[str], labels: np.ndarray, told: dict[str, Any]) -> list[str]:
    """How often each class was answered with which, from scratch / MAE."""
    lines = [f"| {name}: of | " + " | ".join(classes) + " |", "|---" * (len(classes) + 1) + "|"]
    for true, label in enumerate(classes):
        counts = [
            np.bincount(told[arm]["predictions"][labels == true], minlength=len(classes)) for arm in ("scratch", "mae")
        ]
        lines.append(
            f"| {label} | " + " | ".join(f"{one} / {other}" for one, other in zip(*counts, strict=True)) + " |"
        )
    return lines


def _numbers(digits: str) -> np.ndarray:
    return np.array([int(digit) for digit in digits])


def draw_figure(results: Results, path: Path) -> None:
    """Accuracy of the arms over the CPU time they take, as in the paper's Figure 5."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), dpi=120)
    colours = {"from scratch": "tab:grey", "from scratch, equal total time": "black", "MAE, fine-tuned": "tab:red"}
    for labels, marker in ((256, "o"), (2048, "s")):
        spent = costs(results, labels)
        for name, arm in arms_of(results, labels).items():
            if name in colours:
                found = estimate(results, arm, draws=2000)
                bars = [[found.mean - found.low], [found.high - found.mean]]
                axis.errorbar(
                    spent[name], found.mean, yerr=bars, color=colours[name], marker=marker, capsize=4, linestyle="none",
                    label=f"{name}, {labels:,} labels",
                )  # fmt: skip
    axis.axhline(12.5, color="tab:blue", linewidth=0.8, linestyle=":", label="chance")
    axis.set_xlabel("CPU minutes for one classifier, pre-training included")
    axis.set_ylabel("test accuracy, %")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def write_report(folder: Path, out: Path) -> None:
    """Writes the page and, beside it, the figure."""
    results = Results(folder)
    draw_figure(results, out.with_suffix(".png"))
    out.write_text(page(results, out.with_suffix(".png").name))
    print("\n".join(verdict(results)))
