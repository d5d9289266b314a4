"""`stmae finetune` as a whole: labels in, a classifier out; what it begins with, what it refuses, how it goes on."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from labelled import DIRECTIONS, SMALL, labelled_clips, moving, write_labelled, write_start
from PIL import Image
from safetensors.torch import load_file
from small_run import save_run, small_model
from toy import assert_same

import stmae
from stmae.data.labels import Labels
from stmae.engine.loop import StepResult
from stmae.errors import UserError
from stmae.model.heads import Classifier
from stmae.tasks.finetune import Finetuning, class_weights, mask_ratio, score
from stmae.tasks.finetune_data import by_class, part_by_class
from stmae.tasks.finetune_options import FinetuneOptions
from stmae.tasks.finetune_setup import FinetuneSetup
from stmae.tasks.task import bind

PLAIN = {"rand_augment": 0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "dropout": 0.0, "drop_path": 0.0}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last(run: Path, name: str) -> float:
    return [line[name] for line in metrics(run) if name in line][-1]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of a square that moves left, six of one that moves right; not to be changed."""
    return write_labelled(tmp_path_factory.mktemp("labelled"), each=6)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the encoder comes from: a run of a tiny autoencoder."""
    return write_start(tmp_path_factory.mktemp("start") / "mae")


@pytest.fixture(scope="module")
def run(videos: Path, start: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all of the recipe."""
    options = {
        **SMALL,
        "init": start,
        "epochs": 4,
        "preset": "recipe",
        "mask_ratio": 0.5,
        "ema": 0.9,
        "holdout": 0.2,
        "save_every": 1,
    }
    return stmae.finetune(videos, out=tmp_path_factory.mktemp("runs") / "tuned", **options)


@pytest.mark.slow
def test_a_run_leaves_a_classifier_that_knows_its_classes(run: Path) -> None:
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert names == {"config.yaml", "index.csv", "log.txt", "metrics.jsonl", "checkpoints", "classifier.safetensors"}
    classifier = stmae.load(run)
    assert isinstance(classifier, Classifier)
    assert classifier.config.class_names == ("left", "right")
    assert classifier.config.problem == "single"
    clips = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    assert classifier.scores(classifier(clips)).sum(1).tolist() == pytest.approx([1, 1])
    scored = [line for line in metrics(run) if "val_top1" in line]
    assert len(scored) >= 3
    assert {"val_loss", "val_top1", "val_mean_class"} <= scored[-1].keys()
    assert "the same command" not in (run / "log.txt").read_text()
    assert "classes: right 5, left 5" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_the_same_command_goes_on_with_the_run(run: Path, start: str, videos: Path) -> None:
    before = (run / "classifier.safetensors").read_bytes()
    assert stmae.finetune(videos, out=run, init=start, workers=0, loggers=()) == run
    assert (run / "classifier.safetensors").read_bytes() == before
    with pytest.raises(UserError, match=r"mixup: 0\.8 in the run, 0\.4 now"):
        stmae.finetune(videos, out=run, init=start, mixup=0.4)


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_exactly(
    videos: Path, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that is random: the whole recipe, repeats, a mask that falls, an average, balance, patience."""
    options = {
        **SMALL, "init": start, "preset": "recipe", "repeats": 2, "mask_ratio": 0.5, "ema": 0.9, "epochs": 8,
        "balance": "sampling", "patience": 50, "save_every": 2, "evaluate_every": 3, "holdout": 0.2,
    }  # fmt: skip
    whole = stmae.finetune(videos, out=tmp_path / "whole", **options)
    steps = max(line["step"] for line in metrics(whole))
    assert steps >= 8
    step, seen = Finetuning.step, itertools.count(1)

    def killed(self: Finetuning, batch: Any) -> StepResult:
        if next(seen) == 6:
            raise ZeroDivisionError
        return step(self, batch)

    monkeypatch.setattr(Finetuning, "step", killed)
    with pytest.raises(ZeroDivisionError):
        stmae.finetune(videos, out=tmp_path / "broken", **options)
    broken = stmae.finetune(videos, out=tmp_path / "broken", **options)
    assert next(seen) > steps - 4 + 6 - 1, "it went on from a checkpoint"
    assert_same(*(load_file(path / "classifier.safetensors") for path in (whole, broken)))
    newest = [max((path / "checkpoints").glob("step-*")) for path in (whole, broken)]
    assert_same(*(load_file(path / "optimizer.safetensors") for path in newest))
    clock = ("clips_per_second", "data_wait", "memory_gb", "time", "eta", "mfu")
    lines = [[{k: v for k, v in line.items() if k not in clock} for line in metrics(path)] for path in (whole, broken)]
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_it_learns_by_heart(problem: str, start: str, tmp_path: Path) -> None:
    """Four classes that differ in direction alone; as several labels of each; as two numbers."""
    clips = labelled_clips(3, DIRECTIONS)
    if problem == "multi":
        clips = [
            (clip, {"up": "up;vertical", "down": "vertical", "left": "left", "right": "-"}[n]) for clip, n in clips
        ]
    elif problem == "regression":
        speed = {"up": (10.0, -2.0), "down": (10.0, 2.0), "left": (8.0, 0.0), "right": (12.0, 0.0)}
        clips = [(clip, speed[name]) for clip, name in clips]
    out = stmae.finetune(
        clips, val=clips, out=tmp_path / "run", problem=problem,
        **{**SMALL, "init": start, **PLAIN, "epochs": "60 steps", "batch_size": 12, "lr": 3e-3, "label_smoothing": 0.0,
           "log_every": 60, "layer_decay": 1.0, "holdout": 0.0, "evaluate_every": 30},
    )  # fmt: skip
    name = {"single": "val_top1", "multi": "val_map", "regression": "val_r2"}[problem]
    assert last(out, name) > 0.95, metrics(out)
    classifier = stmae.load(out)
    outputs = classifier(torch.stack([clip for clip, _ in clips[:4]])).tolist()  # in the order of DIRECTIONS
    if problem == "single":
        assert classifier.config.class_names == DIRECTIONS
        assert [np.argmax(row) for row in outputs] == [0, 1, 2, 3]
    elif problem == "multi":
        assert classifier.config.class_names == ("left", "up", "vertical")
        assert [[value > 0 for value in row] for row in outputs] == [
            [False, False, True], [True, False, False], [False, False, False], [False, True, True],
        ]  # fmt: skip
    else:
        assert np.allclose(outputs, [(10, 2), (8, 0), (12, 0), (10, -2)], atol=1.0), "in their own unit"


# What it begins with


def test_the_encoder_of_a_pretraining_with_other_clips(videos: Path, tmp_path: Path) -> None:
    """Its size, stride and clips are taken over; positions are interpolated where other clips are asked for."""
    model = small_model(frames=4, image_size=32)
    save_run(tmp_path / "mae", model, stride=2.5)
    setup = FinetuneSetup.of(bind(FinetuneOptions, (videos,), {"init": str(tmp_path / "mae"), "out": tmp_path / "a"}))
    assert setup.config.encoder == model.config.encoder
    assert (setup.options.frames, setup.options.image_size, setup.options.stride) == (4, 32, 2.5)
    classifier = setup.build_model()
    assert "the head starts afresh" in setup.init_weights(classifier)
    assert_same(classifier.encoder.state_dict(), model.encoder.state_dict())

    given = {"init": str(tmp_path / "mae"), "out": tmp_path / "b", "frames": 8, "image_size": 48}
    setup = FinetuneSetup.of(bind(FinetuneOptions, (videos,), given))
    assert setup.config.encoder.clip.shape == (8, 48, 48)
    classifier = setup.build_model()
    assert "positions interpolated" in setup.init_weights(classifier)
    clips = torch.randint(0, 256, (1, 3, 8, 48, 48), dtype=torch.uint8)
    assert torch.allclose(classifier.encoder(clips), model.encoder(clips), atol=1e-5), "as the encoder itself does it"


def test_from_scratch_the_few_videos_preset_chooses_a_small_model(videos: Path, tmp_path: Path) -> None:
    given = {"init": "none", "out": tmp_path / "run", "device": "cpu", "frames": 4}
    setup = FinetuneSetup.of(bind(FinetuneOptions, (videos,), given))
    assert setup.config.encoder.blocks.width == 192
    assert setup.config.encoder.clip.shape == (4, 64, 64)
    assert setup.begins_with is None
    assert {group["lr_scale"] for group in setup.groups(setup.build_model())} == {1.0}


@pytest.mark.slow
def test_a_classifier_of_other_classes_loses_its_head_and_of_the_same_keeps_it(run: Path, tmp_path: Path) -> None:
    def begin(classes: tuple[str, ...]) -> tuple[str, Classifier]:
        folder = write_labelled(tmp_path / "-".join(classes), each=2, classes=classes)
        setup = FinetuneSetup.of(bind(FinetuneOptions, (folder,), {"init": str(run), "out": tmp_path / "out"}))
        model = setup.build_model()
        return setup.init_weights(model), model

    trained = stmae.load(run)
    said, model = begin(("left", "right"))
    assert "the head, which tells the same 2 classes" in said
    assert_same(model.state_dict(), trained.state_dict())
    said, model = begin(("left", "up"))
    assert "its head of 2 classes is replaced by a fresh one of 2" in said
    assert_same(model.encoder.state_dict(), trained.encoder.state_dict())
    assert not torch.equal(model.head.weight, trained.head.weight)


@pytest.mark.parametrize("fixture", ["pretrain_default", "slowfast_mae_pretrain_default", "videomae_pretrain_default"])
def test_a_reference_checkpoint_begins_a_fine_tuning(fixture: str, videos: Path, shared: Path, tmp_path: Path) -> None:
    where = shared / f"parity/{fixture}.safetensors"
    setup = FinetuneSetup.of(bind(FinetuneOptions, (videos,), {"init": str(where), "out": tmp_path / "run"}))
    model = setup.build_model()
    assert "the head starts afresh" in setup.init_weights(model)
    source = stmae.load(where)
    clip = setup.config.encoder.clip
    clips = torch.randint(0, 256, (1, 3, *clip.shape), dtype=torch.uint8)
    assert torch.equal(model.encoder(clips), source(clips))
    assert clip.mean == source.config.clip.mean
    assert model(clips).shape == (1, 2)


@pytest.mark.parametrize("fixture", ["finetune_default", "slowfast_finetune_default", "videomae_finetune_default"])
def test_parameter_groups_are_the_references(fixture: str, shared: Path) -> None:
    """Every parameter of ours gets the learning-rate factor and weight decay that theirs has, through our options."""
    from safetensors import safe_open

    from stmae.interop.families import FAMILIES
    from stmae.interop.naming import to_theirs
    from stmae.interop.native import load_model
    from stmae.tasks.finetune_setup import groups

    where = shared / f"parity/{fixture}.safetensors"
    with safe_open(str(where), "pt") as file:
        config = json.loads(file.metadata()["config"])
    model = load_model(where)
    assert isinstance(model, Classifier)
    options = FinetuneOptions(
        videos="", out=Path(), init="none", layer_decay=config["layer_decay"], weight_decay=config["weight_decay"],
        decay_positions=fixture.startswith("slowfast"),
    )  # fmt: skip
    family = FAMILIES[{"finetune": "mae_st", "slowfast": "slowfast", "videomae": "videomae"}[fixture.split("_")[0]]]
    checked = set()
    for group in groups(model, options):
        for name, parameter in group["params"]:
            # Theirs are found by what becomes of a state dict in which this parameter alone is not zero.
            marked = {n: torch.full_like(p, float(n == name)) for n, p in model.state_dict().items()}
            for theirs, value in to_theirs(marked, model.config, family).items():
                if value.any():
                    wanted = config["param_groups"][theirs]
                    assert group["weight_decay"] == wanted["weight_decay"], (name, theirs)
                    assert group["lr_scale"] == pytest.approx(wanted["lr_scale"], rel=1e-12), (name, theirs)
                    checked.add(theirs)
            assert parameter.requires_grad
    assert checked == config["param_groups"].keys()


# The recipe


def test_the_mask_ratio_falls_to_nothing_as_half_a_cosine() -> None:
    found = [mask_ratio(0.5, 100, 4, cursor) for cursor in (1, 4, 5, 4 * 50 + 1, 4 * 100)]
    assert found[:2] == [0.5, 0.5], "all parts of a step alike"
    assert 0.499 < found[2] < 0.5
    assert found[3] == pytest.approx(0.25)
    assert 0 <= found[4] < 0.001


def test_scores() -> None:
    outputs = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = score("single", outputs, np.array([0, 1, 1]))
    assert found["val_top1"] == pytest.approx(2 / 3)
    assert found["val_mean_class"] == pytest.approx(0.75)
    assert found["val_loss"] == pytest.approx(np.log1p(np.exp([-2, -1, 3])).mean())
    found = score("multi", np.array([[3.0, -2.0], [-1.0, 4.0]]), np.eye(2, dtype=np.float32))
    assert found["val_map"] == 1.0
    assert found["val_loss"] == pytest.approx(np.log1p(np.exp([-3, -2, -1, -4])).mean())
    found = score("regression", np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]]))
    assert [found[name] for name in ("val_loss", "val_r2", "val_mae")] == pytest.approx([0.5, -1.0, 0.5])
    assert score("regression", np.array([[np.nan], [3.0]]), np.array([[1.0], [2.0]]))["val_r2"] == -np.inf


def test_an_even_share_of_every_class_is_held_out(videos: Path) -> None:
    found = stmae_source(videos)
    labels = Labels("single", ("left", "right"), np.array([0] * 6 + [1] * 6))
    kept, held = part_by_class(found, labels, 0.34)
    assert held is not None
    assert sorted(held.label(i) for i in range(len(held))) == ["left"] * 2 + ["right"] * 2
    assert {kept.name(i) for i in range(len(kept))} | {held.name(i) for i in range(len(held))} == {
        found.name(i) for i in range(12)
    }
    rare = Labels("single", ("left", "right"), np.array([0] * 11 + [1]))
    kept, held = part_by_class(found, rare, 0.9)
    assert found.name(11) in {kept.name(i) for i in range(len(kept))}, "a class of one is trained on"
    assert part_by_class(found, labels, 0.0)[1] is None


def stmae_source(folder: Path) -> Any:
    from stmae.data.sources import scan

    return scan(folder)


def test_balanced_sampling_takes_every_class_as_often(videos: Path) -> None:
    from stmae.data.order import Order

    found = stmae_source(videos)
    labels = Labels("single", ("a", "b", "c"), np.array([0] * 8 + [1] * 3 + [2]))
    mixture, order = by_class(found, labels)
    assert all(mixture.name(place).endswith(found.name(int(item))) for place, item in enumerate(order))
    slots = Order(mixture, seed=1)
    met = labels.targets[order][[slots.at(slot).item for slot in range(5 * len(slots))]]
    assert np.bincount(met).tolist() == [20, 20, 20]


def test_class_weights_balance_the_loss(start: str, tmp_path: Path) -> None:
    folder = write_labelled(tmp_path / "uneven", each=6)
    for extra in sorted((folder / "left").iterdir())[2:]:
        extra.unlink()
    given = {**SMALL, "init": start, "out": tmp_path / "run", "holdout": 0.0, "balance": "loss"}
    setup = FinetuneSetup.of(bind(FinetuneOptions, (folder,), given))
    weights = class_weights(setup)
    assert weights.tolist() == pytest.approx([2.0, 2 / 3])
    assert weights @ setup.labels.counts == pytest.approx(8)
    both = Labels("multi", ("a", "b"), np.array([[1, 1], [1, 0], [1, 0], [1, 0]], np.float32))
    setup = replace(setup, labels=both, config=replace(setup.config, problem="multi"))
    assert class_weights(setup).tolist() == [1.0, 3.0], "what all show weighs 1"


@pytest.mark.parametrize("problem", ["single", "multi"])
def test_a_rare_class_does_not_draw_the_clips_of_others(problem: str) -> None:
    """At the best loss for a clip it shows its own class, whatever the weights and the smoothing."""
    job = mock.Mock(spec=Finetuning, problem=problem, weights=torch.tensor([0.5, 50.0]), scale=None)
    job.options = mock.Mock(label_smoothing=0.1)
    targets = torch.tensor([[1.0, 0.0]])
    logits = torch.zeros(1, 2, requires_grad=True)
    descent = torch.optim.LBFGS([logits], max_iter=100)

    def loss() -> torch.Tensor:
        descent.zero_grad()
        total, weight = Finetuning._loss(job, logits, targets)
        (total / weight).backward()
        return total

    descent.step(loss)
    found = logits.softmax(1) if problem == "single" else logits.sigmoid()
    torch.testing.assert_close(found, torch.tensor([[0.95, 0.05]]), atol=2e-3, rtol=0)


@pytest.mark.slow
def test_training_ends_early_with_the_best_weights(
    videos: Path, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.9, 0.5, 0.7, 0.6, 0.55, 0.1, 0.1, 0.1])

    def scored(problem: str, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {"val_loss": next(losses), "val_top1": 0.5}

    monkeypatch.setattr("stmae.tasks.finetune.score", scored)
    kept: list[dict[str, torch.Tensor]] = []
    publish = Finetuning.publish
    monkeypatch.setattr(Finetuning, "publish", lambda self, weights: (kept.append(weights), publish(self, weights)))
    options = {
        **SMALL,
        "init": start,
        **PLAIN,
        "epochs": "20 steps",
        "evaluate_every": 1,
        "patience": 3,
        "save_every": 20,
    }
    out = stmae.finetune(videos, out=tmp_path / "run", holdout=0.2, **options)
    assert max(line["step"] for line in metrics(out)) == 5, "three evaluations after the second were no better"
    assert len(kept) == 2
    assert_same(load_file(out / "classifier.safetensors"), kept[1])
    assert "stopped early" in (out / "log.txt").read_text()
    stmae.finetune(videos, out=out, holdout=0.2, **options)
    assert max(line["step"] for line in metrics(out)) == 5, "and it does not go on"


@pytest.mark.slow
def test_unreadable_validation_videos_are_left_out(videos: Path, start: str, tmp_path: Path) -> None:
    """Also the first ones, on which the run tries itself out; they count beside the training videos, not among them."""
    val = write_labelled(tmp_path / "val", each=6)
    for name in ("left/0.mp4", "left/1.mp4", "left/2.mp4"):
        (val / name).write_bytes(b"no video")
    run = stmae.finetune(
        videos, out=tmp_path / "run", val=val, init=start, max_bad_share=0.2, **(SMALL | {"epochs": 1})
    )
    assert 0 <= last(run, "val_top1") <= 1
    assert (run / "bad_files.csv").read_text().count("left/") == 3
    other = write_labelled(tmp_path / "other", each=2)
    for path in other.glob("*/*.mp4"):
        path.rename(path.with_stem(f"other-{path.stem}"))
    with pytest.raises(UserError, match="none of the validation videos that the run was begun with"):
        stmae.finetune(
            videos, out=run, val=other, init=start, max_bad_share=0.2, **(SMALL | {"epochs": 2, "workers": 0})
        )


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, repeats", [(1, 1), (3, 1), (6, 2)])
def test_odd_batches_train(batch_size: int, repeats: int, start: str, tmp_path: Path) -> None:
    clips = labelled_clips(3)
    options = {
        **SMALL,
        "init": start,
        "preset": "recipe",
        "batch_size": batch_size,
        "repeats": repeats,
        "epochs": "1 steps",
    }
    out = stmae.finetune(clips, out=tmp_path / "run", **options, holdout=0.0)
    assert isinstance(stmae.load(out), Classifier)
    log = (out / "log.txt").read_text()
    assert ("mixup and cutmix do nothing" in log) == (batch_size == 1)
    assert "no validation videos" in log


# What it refuses


def refused(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        stmae.finetune(*args, **{"loggers": (), **options})
    return str(error.value)


def test_labels_that_cannot_work_are_refused(videos: Path, tmp_path: Path) -> None:
    one = write_labelled(tmp_path / "one", each=2, classes=("left",))
    assert "single class" in refused(one, init="none", out=tmp_path / "run")
    other = write_labelled(tmp_path / "other", each=2, classes=("left", "up"))
    assert '"up"' in refused(videos, val=other, init="none", out=tmp_path / "run")
    (tmp_path / "empty" / "right").mkdir(parents=True)
    write_labelled(tmp_path / "empty", each=2, classes=("left", "up"))
    assert '"right"' in refused(tmp_path / "empty", init="none", out=tmp_path / "run")
    listed = tmp_path / "list.csv"
    listed.write_text("".join(f"{path},\n" for path in sorted(videos.rglob("*.mp4"))))
    assert "no label" in refused(listed, init="none", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_that_cannot_work_are_refused_at_once(videos: Path, tmp_path: Path) -> None:
    said = refused(videos, init="none", out=tmp_path / "run", mixup=3.0, dropout=1.0, erase=2, magnitude=11, patience=0)
    assert said.startswith("5 mistakes")
    assert "init" in refused(videos, init=str(tmp_path / "nothing"), out=tmp_path / "run")
    assert "Did you mean" in refused(videos, init="none", out=tmp_path / "run", preset="few_video")
    save_run(tmp_path / "mae", small_model(frames=4))
    init = str(tmp_path / "mae")
    assert "model and patch cannot be chosen" in refused(
        videos, init=init, out=tmp_path / "run", model="vit_base", patch=(2, 16, 16)
    )
    assert "not a multiple of the patch's 8" in refused(videos, init=init, out=tmp_path / "run", image_size=36)
    assert "exclude each other" in refused(videos, init=init, out=tmp_path / "run", val=videos, holdout=0.5)
    listed = tmp_path / "numbers.csv"
    listed.write_text("".join(f"{path},{n + 0.5}\n" for n, path in enumerate(sorted(videos.rglob("*.mp4")))))
    assert "cutmix" in refused(listed, init=init, out=tmp_path / "run", cutmix=0.5)
    assert "no labels" in refused(torch.zeros(4, 3, 4, 32, 32), init=init, out=tmp_path / "run")


def setup_of(videos: Any, start: str, out: Path, **given: Any) -> FinetuneSetup:
    return FinetuneSetup.of(bind(FinetuneOptions, (videos,), {**SMALL, "init": start, "out": out, **given}))


def test_pictures_in_class_folders_are_clips_that_stand_still(start: str, tmp_path: Path) -> None:
    for name, number in itertools.product(("left", "right"), range(5)):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(moving(name, number, frames=1)[0]).save(tmp_path / "set" / name / f"{number}.png")
    out = stmae.finetune(
        tmp_path / "set", out=tmp_path / "run", **{**SMALL, "init": start, "epochs": "1 steps", "holdout": 0.2}
    )
    assert last(out, "val_top1") in (0.0, 0.5, 1.0)
    assert stmae.load(out).config.class_names == ("left", "right")


@pytest.mark.slow
def test_labels_in_shards_and_lists(videos: Path, start: str, tmp_path: Path) -> None:
    stmae.pack(videos, out=tmp_path / "shards")
    setup = setup_of(tmp_path / "shards", start, tmp_path / "a")
    assert setup.config.class_names == ("left", "right")
    named = {setup.source.name(i): setup.labels.classes[t] for i, t in enumerate(setup.labels.targets)}
    assert named
    assert all(name.startswith(label) for name, label in named.items()), "each item has kept its own label"
    rows = [f"{path},{'swim;jump' if n % 3 else '-'}" for n, path in enumerate(sorted(videos.rglob("*.mp4")))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    setup = setup_of(tmp_path / "list.csv", start, tmp_path / "b", label_smoothing=0.2)
    assert (setup.config.problem, setup.config.class_names) == ("multi", ("jump", "swim"))
    assert setup.val is not None
    assert setup.val.labels.targets.shape == (len(setup.val.source), 2)


def test_parts_of_a_folder_are_honoured(start: str, tmp_path: Path) -> None:
    for part, each in (("train", 4), ("val", 2), ("test", 3)):
        write_labelled(tmp_path / "set" / part, each=each)
    setup = setup_of(tmp_path / "set", start, tmp_path / "run")
    assert len(setup.source) == 8
    assert setup.val is not None
    assert len(setup.val.source) == 4
    assert setup.options.holdout == 0
    assert any("called val" in note for note in setup.notes)
