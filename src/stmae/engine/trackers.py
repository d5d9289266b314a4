"""Services that follow runs: W&B, MLflow, trackio. Each is asked for by name and needs its own package.

What is told to a tracker goes through a queue to a thread of its own, so that a slow service delays no step, and
trouble with one ends no run. By what id a tracker knows the run, and for which step each number was last told, stands
in `<run>/trackers/`, so that a resumed run goes on there and tells nothing twice.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import os
import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stmae.engine.log import Sink
from stmae.runs import RunFolder
from stmae.weights import plain, write_atomic

PROJECT = "stmae"
WAITING = 1000  # messages that may wait for a service; further ones are left out
PATIENCE = 60.0  # seconds in which a service may take the rest when a run ends


class Tracker(Sink):
    """A service. Subclasses say how to begin a run of its own (or go on with `self.id`), how to tell it, how to end.

    Args:
        run: the run's folder.
        config: its resolved configuration, plain values by name.

    Raises:
        Exception: whatever the service's package raises when it cannot begin.
    """

    name = ""

    def __init__(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        self._folder, self._title = run.trackers, run.path.absolute().name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / f"{self.name}.json"
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.id: str | None = known.get("id")
        self._told: dict[str, int] = known.get("told", {})
        self._before = dict(self._told)  # what an earlier part of the run told
        self.begin(plain(config))
        self._remember()
        self._trouble: Exception | None = None
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def begin(self, config: dict[str, Any]) -> None:
        raise NotImplementedError

    def tell(self, step: int, values: dict[str, float]) -> None:
        raise NotImplementedError

    def show(self, step: int, name: str, picture: np.ndarray | bytes) -> None:
        """A picture (H, W, 3), or a GIF."""
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._queue(lambda: self._tell_new(step, dict(values)))

    def _tell_new(self, step: int, values: dict[str, float]) -> None:
        """What was not told before the run was resumed; numbers that are not finite have no place in a plot."""
        new = {n: v for n, v in values.items() if step > self._before.get(n, -1) and math.isfinite(v)}
        if new:
            self.tell(step, new)
            self._told.update(dict.fromkeys(new, step))
            self._remember()

    def picture(self, name: str, step: int, picture: np.ndarray | bytes) -> None:
        if step > self._before.get(name, -1):
            self._queue(lambda: self._show_new(step, name, picture))

    def _show_new(self, step: int, name: str, picture: np.ndarray | bytes) -> None:
        self.show(step, name, picture)
        self._told[name] = step
        self._remember()

    def _remember(self) -> None:
        write_atomic(self._file, json.dumps({"id": self.id, "told": self._told}))

    def _queue(self, work: Callable[[], None]) -> None:
        trouble, self._trouble = self._trouble, None
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            trouble = trouble or TimeoutError(f"it is {WAITING} messages behind")
        if trouble is not None:
            raise OSError(f"{type(trouble).__name__}: {trouble}")  # which the log takes for a warning

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work()
            except Exception as error:
                self._trouble = error

    def close(self) -> None:
        """Gives the service some time to take what is waiting, and ends its run."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(self.end, timeout=PATIENCE)
            self._waiting.put(None, timeout=PATIENCE)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise OSError(f"it did not take the rest within {PATIENCE:.0f} seconds")
        if self._trouble is not None:
            raise OSError(f"{type(self._trouble).__name__}: {self._trouble}")


class Wandb(Tracker):
    """Weights & Biases; its own variables (WANDB_PROJECT, WANDB_MODE, ...) say where and how."""

    name = "wandb"

    def begin(self, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", self._title),
            id=self.id,
            resume="allow",
            dir=str(self._folder),
            config=config,
            settings=wandb.Settings(console="off"),  # log.txt has it
        )
        self.id = self._run.id
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def tell(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def show(self, step: int, name: str, picture: np.ndarray | bytes) -> None:
        import wandb

        moving = isinstance(picture, bytes)
        media = wandb.Video(io.BytesIO(picture), format="gif") if moving else wandb.Image(picture)  # type: ignore[arg-type]
        self._run.log({"step": step, name: media})

    def end(self) -> None:
        self._run.finish()


class Mlflow(Tracker):
    """MLflow; MLFLOW_TRACKING_URI says where, else it is the run's folder."""

    name = "mlflow"

    def begin(self, config: dict[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(elsewhere or self._own_store())
        if self.id is not None:
            self._client.update_run(self.id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self._new_experiment(experiment, elsewhere)
        self.id = self._client.create_run(place, run_name=self._title).info.run_id
        params = [Param(name, str(value)[:500]) for name, value in config.items()]
        for at in range(0, len(params), 100):  # as many as one call takes
            self._client.log_batch(self.id, params=params[at : at + 100])

    def _own_store(self) -> str:
        if importlib.util.find_spec("sqlalchemy") is not None:
            return f"sqlite:///{(self._folder / 'mlflow.db').absolute()}"
        # mlflow-skinny alone knows files only, and lets them be used when told to.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        return (self._folder / "mlruns").absolute().as_uri()

    def _new_experiment(self, name: str, elsewhere: str | None) -> str:
        own = None if elsewhere else (self._folder / "mlartifacts").absolute().as_uri()
        return self._client.create_experiment(name, artifact_location=own)

    def tell(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def show(self, step: int, name: str, picture: np.ndarray | bytes) -> None:
        if not isinstance(picture, bytes):
            self._client.log_image(self.id, picture, key=name, step=step)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"step-{step:06d}.gif"
            file.write_bytes(picture)
            self._client.log_artifact(self.id, str(file), Path(name).stem)

    def end(self) -> None:
        self._client.set_terminated(self.id)


class Trackio(Tracker):
    """trackio, which keeps its runs on this machine unless TRACKIO_SPACE_ID says otherwise."""

    name = "trackio"

    def begin(self, config: dict[str, Any]) -> None:
        import trackio

        self.id = self.id or f"{self._title}-{uuid.uuid4().hex[:6]}"  # it knows runs by their names
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=self.id, config=config, resume="allow"
        )

    def tell(self, step: int, values: dict[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, name: str, picture: np.ndarray | bytes) -> None:
        import trackio

        if not isinstance(picture, bytes):
            self._run.log({name: trackio.Image(picture)}, step=step)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "video.gif"
            file.write_bytes(picture)
            self._run.log({name: trackio.Video(str(file), format="gif")}, step=step)

    def end(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (Wandb, Mlflow, Trackio)}
