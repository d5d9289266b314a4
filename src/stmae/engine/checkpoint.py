"""Checkpoints that are whole or absent, saved in the background, resumed exactly.

```
checkpoints/step-000500/
├── model.safetensors        every tensor of the model, with its configuration in the header (so `stmae.load` reads it)
├── optimizer.safetensors    the optimiser's tensors as "<state>/<parameter name>"
├── state.json               step, cursor, counters; torch version, device type, threads, world size
└── manifest.json            size and SHA-256 of the files above, written last
```

A checkpoint is written under a hidden name, synchronised to disk, then renamed. No generator state is in it: there is
none in a run (the loop seeds each step), so where a run stands is a step and the data's cursor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stmae import weights
from stmae.engine.distributed import ALONE, World
from stmae.engine.parallel import full_copies, spread
from stmae.errors import UserError

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
_SHOWN = 8  # names listed per kind of mismatch


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` updates are done and `cursor` items of the data are consumed.

    `counters` are running totals (clips seen, steps skipped, the unfinished log interval): JSON numbers by name.
    """

    step: int = 0
    cursor: int = 0
    counters: dict[str, float] = field(default_factory=dict)


class Checkpoints:
    """Saves and loads one run's model and optimiser.

    With several processes all of them call `save`, `resume` and `load`; rank 0 alone reads and writes. What is on disk
    is whole whether the tensors lie in parts or not, so that a run may go on in another number of processes.

    Args:
        folder: the run's `checkpoints/`; made on the first save.
        model, optimizer: read on saving, written on loading; the optimiser's groups carry names (`parameter_groups`).
        config: the model's configuration for the header of model.safetensors, JSON types.
        keep: how many of the newest checkpoints stay.
        world: the processes that train together; exact resume depends on their number.
        warn: where warnings go (`log.warning`).
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Mapping[str, Any],
        *,
        keep: int = 3,
        world: World = ALONE,
        warn: Callable[[str], None],
    ) -> None:
        assert keep >= 1
        self.folder = Path(folder)
        self.model, self.optimizer, self.config = model, optimizer, dict(config)
        self.keep, self.world, self.warn = keep, world, warn
        self.saved_step: int | None = None  # of the newest whole checkpoint that this process wrote or loaded
        self._damaged: set[Path] = set()
        self._saver = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    # Saving

    def save(self, position: Position) -> None:
        """Copies model and optimiser to the host and returns; a thread writes them. A save still running is awaited.

        A full disk, or any other trouble with it, becomes a warning by the next `poll` or `wait`: the run goes on and
        the earlier checkpoints stay.
        """
        self.wait()
        # state_dict() aliases live weights, which the next step changes while the thread writes.
        model = full_copies(self.model.state_dict(), self.world)
        optimizer = full_copies(_named_state(self.optimizer), self.world)
        if self.world.main:
            self._pending = self._saver.submit(self._write, position, model, optimizer)

    def poll(self) -> None:
        """Reports a save that has ended in the meantime; waits for none."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns once nothing is being written; a failed save is a warning."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except OSError as error:
            last = "none is on disk yet" if self.saved_step is None else f"the last whole one is step {self.saved_step}"
            self.warn(f"a checkpoint could not be written ({error}); {last}; the run goes on. Make room on the disk.")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self.wait()

    def _write(self, position: Position, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        final = self.folder / f"step-{position.step:06d}"
        temp = self.folder / f".{final.name}.tmp"
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        try:
            weights.save_weights(temp / weights.MODEL, model, self.config)
            weights.write_tensors(temp / OPTIMIZER, optimizer, {"stmae_format": weights.FORMAT})
            weights.write_atomic(temp / STATE, json.dumps(asdict(position) | self._surroundings(), indent=1))
            weights.write_manifest(temp)
            weights.publish(temp, final)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        self.saved_step = position.step
        self._damaged.discard(final)
        self._prune(position.step)

    def _prune(self, step: int) -> None:
        """Keeps the newest. Folders beyond this step, and damaged ones, are no reason to delete a good one."""
        whole = [folder for folder in weights.step_folders(self.folder) if folder not in self._damaged]
        for old in [folder for folder in whole if int(folder.name[5:]) <= step][self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def _surroundings(self) -> dict[str, Any]:
        """What bit-for-bit resume depends on besides the configuration."""
        device = next(self.model.parameters()).device.type
        return {
            "torch": torch.__version__,
            "device": device,
            "threads": torch.get_num_threads(),
            "world_size": self.world.size,
        }

    # Loading

    def latest_whole(self) -> Path | None:
        """The newest whole checkpoint, or None; warns of each damaged one it passes over."""
        whole = weights.newest_whole(self.folder, self.warn)
        for folder in weights.step_folders(self.folder):
            if folder == whole:
                break
            self._damaged.add(folder)
        return whole

    def resume(self) -> Position:
        """Goes on from the newest whole checkpoint; the start where there is none yet.

        Raises:
            UserError: there are checkpoints but none is whole, or the one found does not fit the model.
        """
        whole = self.world.first(self._to_resume)
        return Position() if whole is None else self.load(whole)

    def _to_resume(self) -> Path | None:
        for leftover in self.folder.glob(".step-*"):  # of a process killed while saving
            shutil.rmtree(leftover, ignore_errors=True)
        whole = self.latest_whole()
        if whole is None and self._damaged:
            raise UserError(
                f'all {len(self._damaged)} checkpoints in "{self.folder}" are damaged, so the run cannot go on.',
                "Delete them to start it anew, or choose another --out.",
            )
        return whole

    def load(self, folder: Path) -> Position:
        """Fills model and optimiser from one checkpoint; warns in a line where the surroundings differ.

        Raises:
            UserError: a name or shape differs; lists them.
        """
        model: dict[str, Tensor] = {}  # whole; on rank 0
        optimizer: dict[str, Tensor] = {}

        def read() -> dict[str, Any]:
            model.update(weights.load_weights(folder / weights.MODEL)[0])
            check_fit(model, self.model.state_dict(), f'the model in "{folder}"')
            optimizer.update(weights.read_tensors(folder / OPTIMIZER)[0])
            _check_named_state(self.optimizer, optimizer, folder)
            return json.loads((folder / STATE).read_text())

        state = self.world.first(read)
        self.model.load_state_dict(spread(model, self.model.state_dict().get, self.world), strict=True)
        parameters = dict(_names(self.optimizer))
        parts = spread(optimizer, lambda name: parameters.get(name.split("/", 1)[1]), self.world)
        _load_named_state(self.optimizer, parts)
        now = self._surroundings()
        other = [f"{name} {state.get(name)}, now {value}" for name, value in now.items() if state.get(name) != value]
        if other:
            self.warn(f"saved with {'; '.join(other)}: the run goes on to tolerance, not bit for bit.")
        self.saved_step = state["step"]
        return Position(state["step"], state["cursor"], state["counters"])


def check_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Compares names and shapes.

    Raises:
        UserError: with the names that are missing, unknown or of another shape.
    """
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = [
        _listed(kind, names) for kind, names in (("missing", missing), ("unknown", unknown), ("shape", shapes)) if names
    ]
    if parts:
        raise UserError(f"{what} does not fit.\n" + "\n".join(parts) + "\n", "Was it made with other options?")


def _listed(kind: str, names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"  {kind} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"


def _names(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        assert "param_names" in group, "build the optimiser's groups with parameter_groups(), which names them"
        yield from zip(group["param_names"], group["params"], strict=True)


def _named_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, flat: "exp_avg/blocks.0.mlp.fc1.weight" -> tensor."""
    flat: dict[str, Tensor] = {}
    for name, parameter in _names(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"{key} of {name} is no tensor"
            flat[f"{key}/{name}"] = value
    return flat


def _check_named_state(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor], folder: Path) -> None:
    shapes = {name: parameter.shape for name, parameter in _names(optimizer)}
    wrong = []
    for full, value in flat.items():
        _, name = full.split("/", 1)
        if name not in shapes or (value.ndim > 0 and value.shape != shapes[name]):
            wrong.append(full)
    if wrong:
        raise UserError(
            f'the optimiser in "{folder}" does not fit.\n{_listed("unknown or misshaped", wrong)}\n',
            "Was it made with other options?",
        )


def _load_named_state(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    places = {name: place for place, (name, _) in enumerate(_names(optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for full, value in flat.items():
        key, name = full.split("/", 1)
        # A copy: what safetensors returns lies in the mapped file, unaligned.
        state.setdefault(places[name], {})[key] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
