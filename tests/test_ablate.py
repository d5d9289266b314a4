"""`stmae ablate`: what its cells are, what it refuses, what its report says; and a whole small sweep."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stmae
from stmae import cli, paper
from stmae.data.synthetic import write_videos
from stmae.engine.log import Log
from stmae.errors import UserError
from stmae.tasks import ablate_report
from stmae.tasks.ablate import Cells
from stmae.tasks.ablate_axes import AXES, Variant
from stmae.tasks.ablate_options import AblateOptions
from stmae.tasks.ablate_report import Row
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import bind, field_docs

DOCS = Path(__file__).resolve().parents[1] / "docs" / "ablations.md"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """A folder of videos, one of labelled ones and one for the sweep, for as long as nobody reads them."""
    for name in ("videos/a.mp4", "labelled/one/a.mp4", "labelled/two/a.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return {"videos": tmp_path / "videos", "labelled": tmp_path / "labelled", "out": tmp_path / "sweep"}


def options(places: dict[str, Path], **more: Any) -> AblateOptions:
    return bind(AblateOptions, (), {**places, "axis": ("mask-ratio",), **more})


def cells(given: AblateOptions, preset: str = "paper") -> dict[str, list[str]]:
    shared = given.shared(preset)
    found: dict[str, list[str]] = {}
    for axis, variant in given.cells(preset):
        found.setdefault(axis, []).append(variant.run(shared))
    return found


# Cells ---------------------------------------------------------------------------------------------------------------


def test_every_axis_has_the_shared_cell_once(places: dict[str, Path], tmp_path: Path) -> None:
    for preset in ("paper", "small"):
        found = cells(options(places, axis=("all",)), preset)
        assert list(found) == list(AXES)
        for axis, names in found.items():
            if axis == "finetune-mask":
                assert set(names) == {"base"}
            elif axis not in ("augmentation", "repeats", "decoder-depth") or preset == "paper":
                assert names.count("base") == 1, (preset, axis, names)
            assert axis == "finetune-mask" or len(set(names)) == len(names)


def test_the_papers_cells_under_the_papers_preset(places: dict[str, Path], tmp_path: Path) -> None:
    given = options(places, axis=("decoder-width", "decoder-depth", "repeats"), clips=6400)
    assert cells(given) == {
        "decoder-width": ["decoder_heads=2+decoder_width=128", "decoder_heads=4+decoder_width=256", "base",
                          "decoder_heads=16+decoder_width=1024"],
        "decoder-depth": ["decoder_depth=1", "decoder_depth=2", "base", "decoder_depth=8"],
        "repeats": ["repeats=1", "repeats=2", "base"],
    }  # fmt: skip
    for axis, variant in given.cells("paper"):
        assert variant.paper in paper.TABLES[axis].accuracy
        run = given.pretraining("paper", variant)
        assert run.epochs == "6400 clips"  # equally many for all
        assert run.batch_size == 64


def test_lengths_and_shares_are_cells_too(places: dict[str, Path], tmp_path: Path) -> None:
    given = options(places, axis=("epochs", "data"), clips=1000)
    assert cells(given) == {
        "epochs": ["length=0.25", "length=0.5", "base"],
        "data": ["share=0.25", "share=0.5", "base"],
    }
    assert [given.pretraining("paper", v).epochs for _, v in given.cells("paper")] == [
        "250 clips", "500 clips", *["1000 clips"] * 4,
    ]  # fmt: skip


def test_shared_options_reach_every_cell(places: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("mask_ratio: 0.8\nframes: 8\nseed: 7\nepochs: 3\n")  # a run's config says these too
    settings = ("patch=4,16,16", "crop-area=[0.3 1.0]", "flip=false", "frames=16")
    given = options(places, base=base, settings=settings, axis=("mask-ratio",))
    for _, variant in given.cells("paper"):
        run = given.pretraining("paper", variant)
        assert (run.patch, run.crop_area, run.flip, run.frames) == ((4, 16, 16), (0.3, 1.0), False, 16)
        assert run.epochs == "25000 clips"
        assert "seed" not in run.given
    assert cells(given)["mask-ratio"] == [f"mask_ratio={ratio}" for ratio in (0.5, 0.75, 0.9, 0.95)]


def test_axes_of_ones_own(places: dict[str, Path], tmp_path: Path) -> None:
    own, grid = tmp_path / "own.yaml", tmp_path / "grid.yaml"
    own.write_text("cells:\n  plain: {}\n  both: {decoder_depth: 1, crop_area: [0.2, 1.0]}\n")
    grid.write_text("grid: {mask_ratio: [0.75, 0.9], decoder_depth: [4, 1]}\n")
    given = options(places, axis=(str(own), str(grid)))
    found = cells(given)
    assert found[str(own)] == ["base", "crop_area=0.2x1+decoder_depth=1"]
    assert found[str(grid)] == ["mask_ratio=0.75", "decoder_depth=1+mask_ratio=0.75", "base", "decoder_depth=1"]
    labels = [variant.label for axis, variant in given.cells("paper") if axis == str(grid)]
    assert labels[1] == "mask_ratio 0.75, decoder_depth 1"


def test_names_of_runs_are_names_of_files() -> None:
    long = Variant("", {f"option_{number}": number for number in range(30)})
    odd = [Variant("", {"init": text}) for text in ("a/b c", "a-b-c", "a b/c")]
    names = [variant.run({}) for variant in (long, *odd)]
    assert len(set(names)) == 4
    assert all(len(name) < 120 and not set(name) & set("/ *?") for name in names)


# What is refused -----------------------------------------------------------------------------------------------------


def refused(**given: Any) -> str:
    with pytest.raises(UserError) as error:
        bind(AblateOptions, (), given)
    return str(error.value)


def test_everything_wrong_is_said_at_once(places: dict[str, Path], tmp_path: Path) -> None:
    told = refused(
        **(places | {"labelled": tmp_path / "nowhere"}), axis=("mask-rato", "repeats"), clips=0, run_for=-1.0
    )
    for part in ("nowhere", '"mask-rato" is not known', 'Did you mean "mask-ratio"', "clips 0", "run_for -1"):
        assert part in told


@pytest.mark.parametrize(
    "more, told",
    [
        ({"settings": ("mask_ratio",)}, "is no option=value"),
        ({"settings": ("mask_rato=0.5",)}, 'unknown option "mask_rato"'),
        ({"settings": ("epochs=5",)}, "epochs is not for the cells to share. Give --clips"),
        ({"settings": ("decoder_depth=deep",)}, "decoder_depth"),
        ({"settings": ("batch_size=7",)}, "batch_size 7 is not a multiple"),
        ({"cell": ("mask_ratio=0.7",)}, 'unknown cell "mask_ratio=0.7". Did you mean "mask_ratio=0.75"'),
        ({"judges": ("guess",)}, "guess"),
        ({"axis": ()}, "there is no axis"),
        ({"list": True, "report": True}, "two things"),
    ],
)
def test_mistakes(places: dict[str, Path], more: dict[str, Any], told: str) -> None:
    assert told in refused(**({**places, "axis": ("mask-ratio",)} | more))


def test_a_cell_of_ones_own_that_cannot_work_is_named(places: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("cells:\n  odd: {decoder_width: 100, decoder_heads: 3}\n  new: {no_such: 1}\n")
    told = refused(**places, axis=(str(own),))
    assert 'own "odd": decoder_width 100' in told
    assert 'own "new": unknown option "no_such"' in told
    own.write_text("- 1\n")
    assert "own.yaml" in refused(**places, axis=(str(own),))


# Report --------------------------------------------------------------------------------------------------------------


def some_rows() -> list[Row]:
    run = {"clips_per_second": 10.0, "seconds": 3600.0, "flops_per_clip": 2_000_000_000}
    return [
        Row(
            "128", {"knn": {0: [0.5]}, "linear": {0: [0.4, 0.6], 1: [0.5, 0.7]}}, {0: run, 1: run}, {"knn": 0.5}, "128"
        ),
        Row("512", {"linear": {0: [0.8]}}, {0: run | {"clips_per_second": 5.0}}, {}, "512"),
        Row("own", {}, {}, {}),
    ]


def test_the_table_has_spread_speed_and_the_papers_numbers() -> None:
    lines = ablate_report.table(some_rows(), paper.TABLES["decoder-width"])
    assert lines[0] == "|  | knn | linear | clips/s | speed | time | GFLOPs/clip | paper, Table 2e |"
    assert lines[2] == "| 128 | 0.500 (1) | 0.550 ± 0.129 (4) | 10 | 2.00x | 1 h 0 min | 2 | 80.8 (128) |"
    assert lines[3] == "| 512 | to do | 0.800 (1) | 5 | 1.00x | 1 h 0 min | 2 | 84.4 (512) |"
    assert lines[4] == "| own | to do | to do | to do |  |  |  | not available |"
    assert "Chance: knn 0.500" in lines[-1]
    assert "not available" in ablate_report.table(some_rows(), None)[2]


@pytest.mark.slow
def test_the_plot_shows_every_judge(tmp_path: Path) -> None:
    alone = ablate_report.plot(some_rows(), tmp_path / "alone.png", title="decoder-width")
    beside = ablate_report.plot(some_rows(), tmp_path / "beside.png", title="x", known=paper.TABLES["decoder-width"])
    small, large = (np.asarray(Image.open(path).convert("RGB")) for path in (alone, beside))
    assert large.shape[1] > small.shape[1]
    for picture in (small, large):
        assert (np.ptp(picture.reshape(-1, 3), axis=0) > 100).all()


def test_the_facts_are_the_papers() -> None:
    best = {name: max(table.accuracy, key=lambda key: table.accuracy[key]) for name, table in paper.TABLES.items()}
    assert best["mask-kind"] == "agnostic 90"
    assert best["decoder-width"] == "512"
    assert best["decoder-depth"] == "4"
    assert set(paper.TABLES) <= {*AXES, "mask-kind", "target"}
    for table in paper.TABLES.values():
        assert set(table.speed) <= set(table.accuracy)


def test_a_report_of_what_has_been_trained_and_not_judged(places: dict[str, Path]) -> None:
    from stmae.tasks.ablate import Cells

    cells = Cells.of(options(places, axis=("target",), smoke=True).settled(), "cpu")
    results = places["out"] / "results"
    results.mkdir(parents=True)
    (results / "tokenizer.json").write_text('{"told": "made"}')  # which runs of the target tokens need
    run = {"clips_per_second": 2.0, "seconds": 16.0, "flops_per_clip": 3_000_000_000, "told": "trained"}
    (results / "target=tokens-s0.json").write_text(json.dumps(run))
    ablate_report.write(cells, Log([]))
    text = (places["out"] / "report.md").read_text()
    assert "| tokens | 2 | 1.00x | 16 s | 3 | 83.8 (dVAE tokens) |" in text
    assert f"2 of {len(cells.sweep().units)} pieces" in text
    assert "# target=tokens-s0: once the sweep has made its tokenizer" in text
    assert (places["out"] / "report.csv").read_text() == ""


# The whole -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven small videos in each of two class folders."""
    folder = tmp_path_factory.mktemp("ablate") / "labelled"
    for number, path in enumerate(write_videos(folder, count=14, seconds=(0.5, 0.6), seed=3)):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        shutil.move(path, place / path.name)
    return folder


@pytest.mark.slow
def test_cells_of_fine_tuning_share_a_pre_training(videos: Path, labelled: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "own.yaml", tmp_path / "sweep"
    own.write_text("cells:\n  plain: {finetune: {mask_ratio: 0.0}}\n  masked: {finetune: {mask_ratio: 0.5}}\n")
    stmae.ablate(
        videos, labelled=labelled, axis=(str(own),), out=out, smoke=True, clips=8, judge_seeds=1, workers=0,
        precision="fp32", settings=("frames=4",), tuning=("dropout=0.1",),
    )  # fmt: skip
    assert [path.name for path in sorted((out / "runs").iterdir())] == ["base-s0"]
    results = sorted(path.name for path in (out / "results").iterdir())
    assert results == [
        "base-s0--finetune+mask_ratio=0-s0.json", "base-s0--finetune+mask_ratio=0.5-s0.json", "base-s0.json",
    ]  # fmt: skip
    assert not list((out / "tuned").iterdir())
    text = (out / "report.md").read_text()
    assert "|  | finetune |" in text
    assert "--dropout 0.1 --mask-ratio 0.5" in text


@pytest.mark.slow
def test_a_small_sweep(videos: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, out = tmp_path / "own.yaml", tmp_path / "sweep"
    own.write_text("cells:\n  plain: {}\n  shallow: {decoder_depth: 1}\n")
    given: dict[str, Any] = {
        "labelled": labelled, "axis": (str(own), "data"), "out": out, "smoke": True, "clips": 16, "judges": ("knn",),
        "workers": 0, "precision": "fp32", "settings": ("frames=4", "batch_size=4"),
    }  # fmt: skip
    report = stmae.ablate(videos, **given, cell=("base",))
    assert "2 of 8 pieces" in report.read_text()
    trained = out / "runs" / "base-s0" / "encoder.safetensors"
    before = trained.stat().st_mtime_ns
    assert stmae.load(out / "runs" / "base-s0").config.clip.frames == 4
    stmae.ablate(videos, **given)
    assert trained.stat().st_mtime_ns == before  # one run for both axes, and not trained again
    text = report.read_text()
    assert "8 of 8 pieces" in text
    assert "## own" in text
    assert "| plain | 0." in text
    assert "![data](plots/data.png)" in text
    rows = list(csv.DictReader((out / "report.csv").open()))
    assert [(row["axis"], row["cell"]) for row in rows] == [
        ("own", "plain"), ("own", "shallow"), ("data", "25 % of the videos"), ("data", "50 % of the videos"),
        ("data", "100 % of the videos"),
    ]  # fmt: skip
    assert all(row["clips"] == "16" and 0 <= float(row["score"]) <= 1 for row in rows)
    assert not list(out.glob("runs/*/checkpoints"))
    shares = [len((out / "lists" / f"share-{share}.csv").read_text().splitlines()) - 1 for share in ("0.25", "0.5")]
    assert 0 < shares[0] <= shares[1] < 6
    held_out = [
        {row["path"] for row in csv.DictReader(index.open()) if row["split"] == "holdout"}
        for index in out.glob("runs/*/index.csv")
    ]
    assert held_out[0], "all cells are judged on the same held-out videos"
    assert all(found == held_out[0] for found in held_out)
    capsys.readouterr()
    # The commands of the report are right: parsed anew they are the cell's options.
    lines = [line for line in text.splitlines() if line.startswith("stmae pretrain") and "decoder-depth 1" in line]
    (line,) = lines
    parsed = cli.parse("pretrain", PretrainOptions, shlex.split(line)[2:])
    assert bind(PretrainOptions, (), parsed).decoder_depth == 1
    (whole,) = [line for line in text.splitlines() if line.startswith("stmae ablate")]
    assert cli.main([*shlex.split(whole)[1:], "--list"]) == 0
    told = capsys.readouterr().out
    assert "8 of 8 done" in told
    assert "own shallow" in told
    with pytest.raises(UserError, match=r"clips: 16 in the run, 32 now"):
        stmae.ablate(videos, **(given | {"clips": 32}))


@pytest.mark.slow
def test_the_usual_judges(videos: Path, labelled: Path, tmp_path: Path) -> None:
    """Fine-tuning and frozen probes, as where nothing is said."""
    (tmp_path / "own.yaml").write_text("cells:\n  plain: {}\n")
    report = stmae.ablate(
        videos, labelled=labelled, axis=(str(tmp_path / "own.yaml"),), out=tmp_path / "sweep", smoke=True, clips=8,
        judge_seeds=1, workers=0, precision="fp32", settings=("frames=4",),
    )  # fmt: skip
    with (tmp_path / "sweep/report.csv").open() as file:
        assert {row["judge"] for row in csv.DictReader(file)} == {"finetune", "attentive", "knn"}
    assert "4 of 4 pieces" in report.read_text()


def test_smoke_binds_every_axis(videos: Path, labelled: Path, tmp_path: Path) -> None:
    """Each cell's options can work together, before anything is trained."""
    given = {"labelled": str(labelled), "axis": ("all",), "out": tmp_path / "all", "smoke": True}
    cells = Cells.of(bind(AblateOptions, (str(videos),), given).settled(), "cpu")
    assert {axis for axis, _ in cells.variants} == set(AXES)
    for _, variant in cells.variants:
        made = {"tokenizer": str(videos)} if variant.changes.get("target") == "tokens" else {}  # the sweep makes it
        bind(PretrainOptions, (), {**cells.shared, **variant.changes, **made, "videos": str(videos), "out": tmp_path})


@pytest.mark.skipif(not DOCS.is_file(), reason="needs the repository")
def test_the_docs_and_the_help_name_every_axis() -> None:
    page, told = DOCS.read_text(encoding="utf-8"), " ".join(field_docs(AblateOptions)["axis"].split())
    for name, axis in AXES.items():
        assert f"| `{name}` | {' '.join((axis.__doc__ or '').split())} |" in page
        assert f"{name}," in told
