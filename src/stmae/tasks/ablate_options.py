"""The options of `stmae ablate`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from tyro.conf import Positional

from stmae.errors import Problems, UserError
from stmae.presets import Facts
from stmae.tasks.ablate_axes import AXES, Variant, axis_name, read_axis, unknown_axis, variants_of
from stmae.tasks.checks import at_least, check_known, check_threads, check_workers, check_writable
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.options import SEVERAL, AnyPath, Options, RunOptions, Source, default
from stmae.tasks.places import check_places, exists
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import bind, resolve
from stmae.tasks.values import from_text, read_yaml, unwrapped

CLIPS = 25_000
JUDGES = ("finetune", "attentive", "linear", "knn")
# What the sweep itself decides, or what no result may depend on.
OWN = ("videos", "out", "epochs", "seed", "config", "device", "precision", "threads", "workers", "loggers", "keep")
SMOKE: dict[str, Any] = {"clips": 32, "seeds": 1, "judge_seeds": 2}
SMOKE_RUN: dict[str, Any] = {
    "preset": "small", "model": "vit_mini", "image_size": 32, "decoder_width": 64, "decoder_depth": 2,
    "decoder_heads": 2, "batch_size": 8,
}  # fmt: skip
SMOKE_TUNING: dict[str, Any] = {"epochs": "2 steps", "warmup": "0%", "batch_size": 4, "repeats": 1}


@dataclass(frozen=True, kw_only=True)
class AblateOptions(RunOptions):
    """Rerun the paper's ablations on your own videos: vary one thing at a time, judge each cell, write a report.

    Every cell is pre-trained on equally many clips and judged by fine-tuning and by frozen probes. Cells go on where
    they were stopped, and any number of processes (a Slurm array, too) may run the same command: each cell is claimed
    by one of them. Cells that several axes have in common are trained once.

    Examples:

        stmae ablate videos/ --labelled labelled/ --axis mask-ratio --out sweeps/ratio
        stmae ablate videos/ --labelled labelled/ --axis mask-ratio decoder-depth --seeds 2 --out sweeps/two
        stmae ablate videos/ --labelled labelled/ --axis mine.yaml --settings model=vit_small frames=8 --out sweeps/mine
        stmae ablate videos/ --labelled labelled/ --axis all --smoke --out sweeps/smoke
        stmae ablate videos/ --labelled labelled/ --axis mask-ratio --out sweeps/ratio --list
    """

    videos: Positional[Source] = field(kw_only=False, metadata=SEVERAL)
    """What to pre-train on: anything that `stmae pretrain` takes."""
    labelled: AnyPath
    """Labelled videos to judge by: class folders, with or without train, val and test above them, or a list."""
    axis: tuple[str, ...]
    """What to vary: mask-ratio, mask-kind, target, augmentation, repeats, decoder-width, decoder-depth, encoder,
    decoder, epochs, data, model-size, finetune-mask, all, or a YAML file of cells of your own."""
    out: AnyPath
    """Folder for runs, results and report; holding this sweep, the sweep goes on."""
    clips: Annotated[int, default(f"{CLIPS}; {SMOKE['clips']} with --smoke")] = CLIPS
    """The budget: clips that each cell is pre-trained on."""
    seeds: int = 1
    """Pre-trainings of each cell, which differ in their seed alone; the first seed of everything comes first."""
    judges: tuple[Literal["finetune", "attentive", "linear", "knn"], ...] = ("finetune", "attentive", "knn")
    """What scores a cell: fine-tuning, an attentive or a linear probe on frozen features, or their neighbours."""
    judge_seeds: Annotated[int, default(f"3; {SMOKE['judge_seeds']} with --smoke")] = 3
    """How often each pre-training is judged, with other seeds of the judge."""
    base: Annotated[AnyPath | None, default("none")] = None
    """YAML file of options of `stmae pretrain` that all cells share, such as a run's config.yaml."""
    settings: Annotated[tuple[str, ...], default("none")] = ()
    """Options of `stmae pretrain` that all cells share, such as model=vit_small frames=8 patch=2,8,8."""
    tuning: Annotated[tuple[str, ...], default("none")] = ()
    """Options of `stmae finetune` that all cells share, such as preset=recipe epochs=50."""
    smoke: bool = False
    """Spend next to nothing: a small model, few clips, few steps. Shows that everything works, in minutes."""
    run_for: Annotated[float | None, default("until all is done")] = None
    """Minutes after which to stop, in good order; the same command goes on from there."""
    cell: Annotated[tuple[str, ...], default("all")] = ()
    """Pre-trainings to do, by their names in --list."""
    list: bool = False
    """Only list the cells and how far they are."""
    report: bool = False
    """Only write the report, from what there is."""
    workers: Annotated[int | None, default("from the machine's cores")] = None
    """Processes that decode videos."""

    def check(self, problems: Problems) -> None:
        """Everything `stmae ablate` can refuse before it looks into a file."""
        check_places(self.videos, problems, name="videos")
        check_places(self.labelled, problems, name="labelled")
        check_writable("out", self.out, problems, folder=True)
        at_least(self, ("clips", "seeds", "judge_seeds"), 1, problems)
        check_threads(self, problems)
        check_workers(self.workers, problems)
        problems.check(bool(self.judges), "there is no judge.", f"Choose from {', '.join(JUDGES)}.")
        problems.check(
            self.run_for is None or self.run_for > 0, f"run_for {self.run_for} is no time.", "Give minutes, such as 60."
        )
        problems.check(not (self.list and self.report), "list and report are two things.", "Give one of them.")
        wrong = len(known := self._check_axes(problems)) < len(self.axis)
        if self.base is not None:
            wrong |= not exists("base", self.base, "Give a YAML file, such as a run's config.yaml", problems)
        if not wrong and known:
            self._check_cells(problems)

    def _check_axes(self, problems: Problems) -> tuple[str, ...]:
        problems.check(bool(self.axis), "there is no axis.", f"Choose from {', '.join(AXES)}, all, or a YAML file.")
        good = []
        for axis in self.axis:
            if axis in AXES or axis == "all":
                good.append(axis)
            elif not Path(axis).is_file():
                problems.extend(unknown_axis(axis))
            else:
                try:
                    read_axis(Path(axis))
                    good.append(axis)
                except UserError as error:
                    problems.extend(error)
        return tuple(good)

    def _check_cells(self, problems: Problems) -> None:
        """Every cell's options; where the preset depends on the device, only what is wrong on all of them."""
        outcomes = []
        for preset in self.possible_presets():
            try:
                shared = self.shared(preset)
                names = sorted({variant.run(shared) for _, variant in self.cells(preset)})
            except UserError as error:
                outcomes.append(error)
                continue
            for name in self.cell:
                check_known("cell", name, tuple(names), problems)
            return
        problems.extend(outcomes[0])

    # What follows from the options ------------------------------------------------------------------------------

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes, "all" spelt out."""
        found = [name for axis in self.axis for name in (AXES if axis == "all" else (axis,))]
        return tuple(dict.fromkeys(found))

    def settled(self) -> AblateOptions:
        """The options with what --smoke stands for."""
        if not self.smoke:
            return self
        return type(self)(**{**SMOKE, **self.given})

    def possible_presets(self) -> tuple[str, ...]:
        """The preset of pre-training, or those that auto may come to mean."""
        preset = str(self.shared_given().get("preset", "auto"))
        return ("small", "paper") if preset == "auto" else (preset,)

    def shared_given(self) -> dict[str, Any]:
        """The options of pre-training that are given for all cells.

        Raises:
            UserError: not of the form name=value, not to be shared, or no YAML.
        """
        found = dict(SMOKE_RUN) if self.smoke else {}
        if self.base is not None:
            found |= {name: value for name, value in read_yaml(self.base).items() if name not in OWN}
        given = assignments("settings", self.settings, PretrainOptions)
        problems = Problems()
        for name in given:
            cure = {"epochs": "Give --clips.", "seed": "Give --seeds."}.get(name, "Give it to `stmae ablate` itself.")
            problems.check(name not in OWN, f"settings: {name} is not for the cells to share.", cure)
        problems.raise_any()
        return found | given

    def tuning_given(self) -> dict[str, Any]:
        """The options of fine-tuning that are given for all cells."""
        return (dict(SMOKE_TUNING) if self.smoke else {}) | assignments("tuning", self.tuning, FinetuneOptions)

    def shared(self, preset: str) -> dict[str, Any]:
        """The options of pre-training that all cells share, resolved: by name.

        Raises:
            UserError: they cannot work.
        """
        options = resolve(self.pretraining(preset, Variant("")), Facts(videos=1000, device="cpu"))
        return {name: getattr(options, name) for name in vars(options) if not name.startswith("_")}

    def pretraining(self, preset: str, variant: Variant, **more: Any) -> PretrainOptions:
        """The options of one cell's pre-training.

        Raises:
            UserError: they cannot work.
        """
        length = max(1, round(self.settled().clips * variant.length))
        own = {
            "videos": self.videos, "out": self.out / "runs" / "cell", "epochs": f"{length} clips", "loggers": (),
            "keep": 1, "log_every": "2%", "save_every": "5%", "evaluate_every": "50%",
        }  # fmt: skip
        given = {**own, **self.shared_given(), "preset": preset, **variant.changes, **more}
        if self.wants_tokenizer(variant):
            given |= {"tokenizer": str(self.tokenizer)} if self.tokenizer.exists() else {"target": "pixels"}
        return bind(PretrainOptions, (), given)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that the sweep trains for cells that predict tokens; until then they are checked as pixels."""
        return self.out / "tokenizer.safetensors"

    def wants_tokenizer(self, variant: Variant) -> bool:
        """Whether a cell predicts tokens, and nobody said whose."""
        given = {**self.shared_given(), **variant.changes}
        return given.get("target") == "tokens" and given.get("tokenizer") is None

    def cells(self, preset: str) -> tuple[tuple[str, Variant], ...]:
        """(axis, cell) of all axes, checked.

        Raises:
            UserError: a cell that cannot work; all such cells at once.
        """
        problems, found = Problems(), []
        base = resolve(self.pretraining(preset, Variant("")), Facts(videos=1000, device="cpu"))
        for axis in self.axes:
            for variant in variants_of(axis, base):
                try:
                    self.pretraining(preset, variant)
                    found.append((axis, variant))
                except UserError as error:
                    for problem, cure in error.problems:
                        problems.add(f'{axis_name(axis)} "{variant.label}": {problem}', cure)
        problems.raise_any()
        return tuple(found)


def assignments(name: str, texts: tuple[str, ...], cls: type[Options]) -> dict[str, Any]:
    """("model=vit_small", "patch=2,8,8") as options of a class by name.

    Raises:
        UserError: a text without "=", or a name given twice.
    """
    problems, found = Problems(), dict[str, Any]()
    hints = get_type_hints(cls, include_extras=True)
    for text in texts:
        option, sign, value = text.partition("=")
        option = option.strip().removeprefix("--").replace("-", "_")
        if not sign or not option:
            problems.add(f'{name}: "{text}" is no option=value.', "Such as model=vit_small.")
            continue
        problems.check(option not in found, f"{name}: {option} is given twice.", "Give it once.")
        found[option] = _value(value.strip(), hints.get(option, str))
    problems.raise_any()
    return found


def _value(text: str, hint: Any) -> Any:
    """Text as what its option wants; what it cannot be, it stays, for `coerce` to say so."""
    if get_origin(unwrapped(hint)) is tuple:
        return from_text(tuple(text.strip("[]() ").replace(",", " ").split()), hint)
    if unwrapped(hint) is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    return from_text(text, hint)
