"""Checkpoints that are whole or absent, saved in the background, resumed exactly.

```
checkpoints/step-000500/
├── model.safetensors        every tensor of the model, with its configuration in the header (so `stmae.load` reads it)
├── optimizer.safetensors    the optimiser's tensors as "<state>/<parameter name>"
├── engine.safetensors       what else training changes, where there is any: "ema/<name>", "loss_scale/<name>"
├── state.json               step, cursor, counters, steps left out; torch version, device type, threads, world size
└── manifest.json            size and SHA-256 of the files above, written last
```

A checkpoint is written under a hidden name, synchronised to disk, then renamed. No generator state is in it: there is
none in a run (the loop seeds each step), so where a run stands is a step and the data's cursor.

`checkpoints/left_out.json` lists the steps that a roll-back leaves out (`recovery.py`). A checkpoint whose weights have
learnt from one of these is passed over, and stays: nothing is deleted because a run went wrong.
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
ENGINE = "engine.safetensors"
FOR_A_WHILE = "loss_scale/"  # of `more`: comes and goes with the precision, which a run may change
STATE = "state.json"
LEFT_OUT = "left_out.json"
_SHOWN = 8  # names listed per kind of mismatch


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` updates are done and `cursor` items of the data are consumed.

    `counters` are running totals (clips seen, steps skipped, the unfinished log interval): JSON numbers by name.
    `left_out` are the steps whose data is used up without an update, past and to come, and `roll_backs` how often the
    run went back to leave them out.
    """

    step: int = 0
    cursor: int = 0
    counters: dict[str, float] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()
    roll_backs: int = 0


class Checkpoints:
    """Saves and loads one run's model and optimiser.

    With several processes all of them call `save`, `resume` and `load`; rank 0 alone reads and writes. What is on disk
    is whole whether the tensors lie in parts or not, so that a run may go on in another number of processes.

    Args:
        folder: the run's `checkpoints/`; made on the first save.
        model, optimizer: read on saving, written on loading; the optimiser's groups carry names (`parameter_groups`).
        config: the model's configuration for the header of model.safetensors, JSON types.
        keep: how many of the newest checkpoints stay.
        milestone_every: those of steps that are multiples of it stay too; 0 for none.
        more: further tensors that training changes, by "<part>/<name>": read on saving, written on loading.
        world: the processes that train together; exact resume depends on their number.
        warn: where warnings go (`log.warning`).
        published: called by the thread that writes, once a checkpoint is whole.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Mapping[str, Any],
        *,
        more: Mapping[str, Tensor] | None = None,
        keep: int = 3,
        milestone_every: int = 0,
        world: World = ALONE,
        warn: Callable[[str], None],
        published: Callable[[], None] | None = None,
    ) -> None:
        assert keep >= 1
        self.folder = Path(folder)
        self.model, self.optimizer, self.config = model, optimizer, dict(config)
        self.more = dict(more or {})
        self.keep, self.milestone_every, self.world, self.warn = keep, milestone_every, world, warn
        self.published = published
        self.saved_step: int | None = None  # of the newest whole checkpoint that this process wrote or loaded
        self._passed_over: set[Path] = set()  # damaged, or with weights that learnt from steps now left out
        self._saver = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    # Saving

    def save(self, position: Position, back_to: int | None = None) -> None:
        """Copies model and optimiser to the host and returns; a thread writes them. A save still running is awaited.

        The newest checkpoint at or before the step `back_to` stays too, whatever `keep` says. A full disk, or any
        other trouble with it, becomes a warning by the next `poll` or `wait`: the run goes on, tries again at the next
        save, and the earlier checkpoints stay.
        """
        self.wait()
        # state_dict() aliases live weights, which the next step changes while the thread writes.
        model = full_copies(self.model.state_dict(), self.world)
        optimizer = full_copies(_named_state(self.optimizer), self.world)
        more = full_copies(self.more, self.world)
        if self.world.main:
            self._pending = self._saver.submit(self._write, position, model, optimizer, more, back_to)

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

    def finish(self, step: int) -> None:
        """Waits for the save of the run's last step.

        Raises:
            UserError: it could not be written.
        """
        self.wait()
        self.world.first(lambda: self._finished(step))

    def _finished(self, step: int) -> None:
        if self.saved_step != step:
            raise UserError(
                f"the run is trained to its end, step {step}, but that could not be saved; the last whole checkpoint is"
                f" of step {self.saved_step or 0}.",
                "Make room on the disk, then repeat the command: it goes on from there.",
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        self.wait()

    def _write(
        self,
        position: Position,
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        more: dict[str, Tensor],
        back_to: int | None,
    ) -> None:
        final = self.folder / f"step-{position.step:06d}"
        temp = self.folder / f".{final.name}.tmp"
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        state = asdict(position) | {"left_out": sorted(position.left_out)} | self._surroundings()
        try:
            weights.save_weights(temp / weights.MODEL, model, self.config)
            weights.write_tensors(temp / OPTIMIZER, optimizer, {"stmae_format": weights.FORMAT})
            if more:
                weights.write_tensors(temp / ENGINE, more, {"stmae_format": weights.FORMAT})
            weights.write_atomic(temp / STATE, json.dumps(state, indent=1))
            weights.write_manifest(temp)
            weights.publish(temp, final)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        self.saved_step = position.step
        self._passed_over.discard(final)
        self._prune(position.step, back_to)
        if self.published is not None:
            self.published()

    def _prune(self, step: int, back_to: int | None) -> None:
        """Keeps the newest, the milestones and the one to roll back to.

        Folders beyond this step, and those passed over, are no reason to delete a good one.
        """
        whole = [folder for folder in weights.step_folders(self.folder) if folder not in self._passed_over]
        past = {folder: _step(folder) for folder in whole if _step(folder) <= step}
        stay = set(list(past)[: self.keep])
        if self.milestone_every:
            stay |= {folder for folder, at in past.items() if at > 0 and at % self.milestone_every == 0}
        if back_to is not None:
            stay |= set([folder for folder, at in past.items() if at <= max(0, back_to)][:1])
        for old in past.keys() - stay:
            weights.remove_folder(old)

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

    def latest_whole(self, at_most: int | None = None) -> Path | None:
        """The newest whole checkpoint, or None; warns of each damaged one it passes over.

        Args:
            at_most: a step; later ones do not count. Nor do those that learnt from a step that is left out.
        """
        left_out, _ = self._left_out()
        for folder in weights.step_folders(self.folder):
            if at_most is not None and _step(folder) > at_most:
                continue
            reason = weights.damage(folder)
            if reason is not None:
                self.warn(f'passing over the damaged checkpoint "{folder}": {reason}.')
            elif {step for step in left_out if step < _step(folder)} <= set(_state(folder).get("left_out", ())):
                return folder
            self._passed_over.add(folder)
        return None

    def roll_back(self, position: Position, steps: range) -> str | None:
        """Adds steps to those that the run at `position` leaves out: the next `resume` goes back to before them.

        Returns:
            The name of the checkpoint that it goes back to; None, and nothing is written, where there is none.
        """
        self.wait()
        return self.world.first(lambda: self._leave_out(position, steps))

    def _leave_out(self, position: Position, steps: range) -> str | None:
        target = self.latest_whole(steps.start)
        if target is not None:
            record = {"roll_backs": position.roll_backs + 1, "steps": sorted(position.left_out | set(steps))}
            weights.write_atomic(self.folder / LEFT_OUT, json.dumps(record))
        return target.name if target else None

    def _left_out(self) -> tuple[frozenset[int], int]:
        """The steps that are left out, and how often the run was rolled back.

        Raises:
            UserError: the list is there and cannot be read.
        """
        path = self.folder / LEFT_OUT
        try:
            record = json.loads(path.read_text())
            return frozenset(int(step) for step in record["steps"]), int(record["roll_backs"])
        except FileNotFoundError:
            return frozenset(), 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'the list of steps that the run leaves out, "{path}", cannot be read ({error}).',
                f'Delete it: "left_out" in a checkpoint\'s {STATE} has the same numbers.',
            ) from None

    def resume(self) -> Position:
        """Goes on from the newest whole checkpoint; the start where there is none yet.

        Raises:
            UserError: there are checkpoints but none is whole, or the one found does not fit the model.
        """
        whole = self.world.first(self._to_resume)
        return Position(0, 0, {}, *self.world.first(self._left_out)) if whole is None else self.load(whole)

    def _to_resume(self) -> Path | None:
        for leftover in self.folder.glob(".step-*"):  # of a process killed while saving
            shutil.rmtree(leftover, ignore_errors=True)
        whole = self.latest_whole()
        if whole is None and self._passed_over:
            raise UserError(
                f'all {len(self._passed_over)} checkpoints in "{self.folder}" are damaged, so the run cannot go on.',
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
        more: dict[str, Tensor] = {}

        def read() -> dict[str, Any]:
            model.update(weights.load_weights(folder / weights.MODEL)[0])
            check_fit(model, self.model.state_dict(), f'the model in "{folder}"')
            optimizer.update(weights.read_tensors(folder / OPTIMIZER)[0])
            _check_named_state(self.optimizer, optimizer, folder)
            more.update(weights.read_tensors(folder / ENGINE)[0] if (folder / ENGINE).exists() else {})
            for name in [name for name in more if name.startswith(FOR_A_WHILE) and name not in self.more]:
                del more[name]
            wanted = {n: t for n, t in self.more.items() if n in more or not n.startswith(FOR_A_WHILE)}
            check_fit(more, wanted, f'the state of training in "{folder}"')
            return _state(folder)

        state = self.world.first(read)
        self.model.load_state_dict(spread(model, self.model.state_dict().get, self.world), strict=True)
        parameters = dict(_names(self.optimizer))
        parts = spread(optimizer, lambda name: parameters.get(name.split("/", 1)[1]), self.world)
        _load_named_state(self.optimizer, parts)
        for name, tensor in spread(more, self.more.get, self.world).items():
            self.more[name].copy_(tensor)
        now = self._surroundings()
        other = [f"{name} {state.get(name)}, now {value}" for name, value in now.items() if state.get(name) != value]
        if other:
            self.warn(f"saved with {'; '.join(other)}: the run goes on to tolerance, not bit for bit.")
        self.saved_step = state["step"]
        steps, roll_backs = self.world.first(self._left_out)
        steps, roll_backs = steps.union(state.get("left_out", ())), max(roll_backs, state.get("roll_backs", 0))
        return Position(state["step"], state["cursor"], state["counters"], steps, roll_backs)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


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
