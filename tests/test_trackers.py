"""W&B and MLflow offline, trackio by a stand-in: numbers and pictures arrive once, and trouble ends no run."""

from __future__ import annotations

import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stmae.engine import trackers
from stmae.engine.log import Log, open_log
from stmae.errors import UserError
from stmae.pictures import gif
from stmae.runs import RunFolder
from stmae.tasks.pretrain_options import PretrainOptions
from stmae.tasks.task import bind

STILL = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
MOVING = gif([STILL, STILL[::-1].copy()], fps=5)


def tell(log: Log, steps: tuple[int, ...]) -> None:
    for step in steps:
        log.metrics(step, {"loss": 1 / step, "odd": math.nan})
        log.metrics(step, {"held_out_loss": 2 / step})
    log.picture("reconstructions", steps[-1], STILL)
    log.picture("reconstructions.gif", steps[-1], MOVING)


def run_and_resume(folder: Path, logger: str) -> tuple[RunFolder, list[str]]:
    """A run of three steps; it was saved after the second, and goes on from there."""
    folder.mkdir()
    run, warnings = RunFolder(folder), []
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with open_log(
            run, step=start, console=False, loggers=(logger,), config={"lr": 0.1, "betas": (0.9, 0.95)}
        ) as log:
            tell(log, steps)
    if run.log.exists():
        warnings = [line for line in run.log.read_text().splitlines() if "warning" in line]
    return run, warnings


@pytest.mark.slow
def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run, warnings = run_and_resume(tmp_path / "first", "wandb")
    assert not warnings
    (first, second) = sorted((run.trackers / "wandb").glob("offline-run-*"))
    assert first.name.rsplit("-", 1)[1] == second.name.rsplit("-", 1)[1], "one run in two parts"
    for part, steps in ((first, 3), (second, 1)):
        file = next(part.glob("*.wandb"))
        for _ in range(300):  # W&B's own process may write its last lines when finish() has returned
            if told := file.read_bytes().count(b"held_out_loss") >= steps:
                break
            time.sleep(0.1)
        assert told
        assert list(part.glob("files/media/images/*.png"))
        assert list(part.glob("files/media/videos/*.gif"))


@pytest.mark.slow
def test_mlflow_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run, warnings = run_and_resume(tmp_path / "first", "mlflow")
    assert not warnings
    from mlflow import MlflowClient

    client = MlflowClient(trackers.Mlflow._own_store(types.SimpleNamespace(_folder=run.trackers)))  # type: ignore[arg-type]
    experiment = client.get_experiment_by_name("stmae")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "first"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "betas": "[0.9, 0.95]"}
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert [entry.path for entry in client.list_artifacts(found.info.run_id, "reconstructions")] == [
        "reconstructions/step-000003.gif",
        "reconstructions/step-000004.gif",
    ]


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What trackio would be told."""
    told: list[Any] = []

    class Run:
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, values: dict[str, Any], step: int) -> None:
            told.append((self.name, step, values))

        def finish(self) -> None:
            told.append((self.name, "finished"))

    def init(*, project: str, name: str, config: dict[str, Any], resume: str) -> Run:
        told.append((name, project, config, resume))
        return Run(name)

    module = types.ModuleType("trackio")
    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda pixels: ("image", pixels.shape)  # type: ignore[attr-defined]
    module.Video = lambda path, format: ("video", Image.open(path).n_frames, format)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    return told


def test_trackio_goes_on_with_its_run(tmp_path: Path, trackio: list[Any]) -> None:
    _, warnings = run_and_resume(tmp_path / "first", "trackio")
    assert not warnings
    name = trackio[0][0]
    assert name.startswith("first-")
    assert {entry[0] for entry in trackio} == {name}
    begun = (name, "stmae", {"lr": 0.1, "betas": [0.9, 0.95]}, "allow")
    assert [entry for entry in trackio if len(entry) == 4] == [begun, begun]
    told = [entry[1:] for entry in trackio if len(entry) == 3]
    assert [entry for entry in told if "loss" in entry[1]] == [(step, {"loss": 1 / step}) for step in (1, 2, 3, 4)]
    assert told[6:8] == [
        (3, {"reconstructions": ("image", (6, 8, 3))}),
        (3, {"reconstructions.gif": ("video", 2, "gif")}),
    ]
    assert trackio[-1] == (name, "finished")


class Sulking(trackers.Tracker):
    name = "sulking"

    def begin(self, config: dict[str, Any]) -> None:
        self.id = "x"

    def tell(self, step: int, values: dict[str, float]) -> None:
        raise ConnectionError(f"no route at step {step}")

    def show(self, step: int, name: str, picture: np.ndarray | bytes) -> None:
        raise ValueError(name)

    def end(self) -> None: ...


class Absent(Sulking):
    def begin(self, config: dict[str, Any]) -> None:
        raise RuntimeError("no key")


def test_trouble_with_a_service_is_a_warning_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Sulking, "mlflow": Absent})
    run = RunFolder(tmp_path)
    with open_log(run, console=False, loggers=("wandb", "mlflow")) as log:
        tell(log, (1, 2, 3))
    lines = run.log.read_text().splitlines()
    assert len(lines) == 2
    assert "mlflow could not begin (RuntimeError: no key); the run goes on without it." in lines[0]
    assert "Sulking could not write" in lines[1]
    assert len(run.metrics.read_text().splitlines()) == 6


def test_a_slow_service_delays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()

    class Slow(Sulking):
        def tell(self, step: int, values: dict[str, float]) -> None:
            gate.wait(60)

    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Slow})
    monkeypatch.setattr(trackers, "WAITING", 3)
    run = RunFolder(tmp_path)
    with open_log(run, console=False, loggers=("wandb",)) as log:
        tell(log, tuple(range(1, 20)))
        assert "messages behind" in run.log.read_text()
        gate.set()


def test_a_logger_that_is_not_installed_is_refused(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"loggers: mlflow is not installed. pip install mlflow-skinny"):
        bind(PretrainOptions, (videos,), {"out": tmp_path, "loggers": ("tensorboard", "mlflow")})
