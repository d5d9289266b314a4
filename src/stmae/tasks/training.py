"""What the engine's loop needs of every task that trains on videos: who was unreadable, what is saved, what is said.

`Training` leaves to its task: `step`, and as far as it has them `evaluate` and `pictures`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stmae.data.clips import clip_key
from stmae.data.dataset import BadFile, FixedClips, Sample
from stmae.data.loader import Batch, read_fixed
from stmae.data.opening import paths_of
from stmae.data.workers import Verdict
from stmae.engine.distributed import World
from stmae.engine.ema import Ema
from stmae.engine.log import Log
from stmae.engine.loop import Task
from stmae.engine.parallel import full_copies, regathered
from stmae.errors import UserError
from stmae.mirror import Mirror
from stmae.runs import BadFiles, RunFolder, Verdicts, save_weights
from stmae.tasks.setup import Setup

HELD_OUT_CLIPS = 64  # at most: an evaluation should take seconds
PICTURE_CLIPS = 4
HELD_OUT_SLOT = -1  # of the verdicts on held-out videos, which are in no slot of the stream


@dataclass
class Parts:
    """What a task's `Training` is made of.

    Attributes:
        setup: what was settled before the first step.
        model: with its own names; `wrapped` is it as all processes train it (`engine.parallel.wrap`).
        run, verdicts, mirror: rank 0 alone writes there.
        counters: of the position that the run goes on from.
    """

    setup: Setup
    model: nn.Module
    wrapped: nn.Module
    run: RunFolder
    verdicts: Verdicts
    log: Log
    world: World
    ema: Ema | None = None
    mirror: Mirror | None = None
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass
class News:
    """What one process has to tell of its videos since it last did."""

    bad: list[BadFile] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    shrunk: int = 0
    repeated: int = 0


class Training(Task):
    """Several processes call every method at the same time."""

    def __init__(self, parts: Parts) -> None:
        self.setup, self.model, self.wrapped, self.world = parts.setup, parts.model, parts.wrapped, parts.world
        self.run, self.verdicts, self.log, self.ema = parts.run, parts.verdicts, parts.log, parts.ema
        self.mirror = parts.mirror
        self.device, self.options = parts.setup.device, parts.setup.options
        self.news = News()
        self.fixed: tuple[Tensor, Tensor] | None = None  # read when first needed
        self.bad = BadFiles(self.run.bad_files)
        self.unreadable: set[str] = set()
        self.shrunk, self.repeated = (int(parts.counters.get(f"task/{name}", 0)) for name in ("shrunk", "repeated"))
        self.said: set[str] = set()

    # What the loop calls

    def on_log(self, step: int) -> dict[str, float]:
        self.hear()
        if self.mirror is not None:
            self.mirror.report(self.log.warning)
        self._say_once(self.shrunk, "in {} clips the stride was shrunk: their videos are shorter than a clip.")
        self._say_once(self.repeated, "in {} clips a frame stands twice: their videos have too few frames for a clip.")
        counts = {"shrunk_clips": self.shrunk, "repeated_clips": self.repeated, "bad_files": len(self.bad)}
        return {name: count for name, count in counts.items() if count}

    def on_save(self, step: int) -> None:
        self.hear()  # verdicts are to be on disk before a checkpoint that lies behind them
        self.save_weights()
        if self.world.main:
            self.bad.flush()

    def counters(self) -> dict[str, float]:
        return {"shrunk": self.shrunk, "repeated": self.repeated}

    def name_clips(self, begin: int, end: int) -> list[str]:
        """The videos of some slots, with the keys from which everything random about their clips follows."""
        clips = self.setup.training_clips()
        lines = []
        for slot in range(begin, end):
            _, item, pass_ = clips.place(slot)
            keys = (clip_key(clips.seed, pass_, item, repeat) for repeat in range(clips.repeats))
            lines.append(f"{clips.source.name(item)}, slot {slot}, keys {' '.join(f'{key:x}' for key in keys)}")
        return lines

    def save_weights(self) -> None:
        """Publishes the weights as they are; all processes call it."""
        weights = self.model.state_dict()
        if self.ema:
            weights = self.ema.weights(weights)
        weights = full_copies(weights, self.world)
        if self.world.main:
            self.publish(weights)

    # What a task may have otherwise

    def publish(self, weights: dict[str, Tensor]) -> None:
        """Writes the weights (whole, in host memory; the average, where there is one) where `stmae.load` looks; called
        on rank 0 with every checkpoint."""
        save_weights(self.run.encoder, weights, self.setup.header())

    def farewell(self) -> str:
        """What was made, and the next commands, to be copied."""
        folder = shlex.quote(str(self.run.path))
        lines = [f"done: the encoder is {self.run.encoder}, the pictures are in {self.run.reconstructions}. Next:"]
        if paths_of(self.options.videos):
            videos = " ".join(shlex.quote(str(path)) for path in paths_of(self.options.videos))
            videos += "" if self.options.root is None else f" --root {shlex.quote(str(self.options.root))}"
            lines += [
                f"  stmae reconstruct {folder} --model {folder} --out {folder}-pictures",
                f"  stmae embed {videos} --model {folder} --out features.parquet",
            ]
        return "\n".join([*lines, f"  python -c 'import stmae; print(stmae.load(\"{self.run.path}\"))'"])

    # What its evaluations need

    @contextlib.contextmanager
    def judged_weights(self) -> Iterator[None]:
        """While open, the model has the average of its weights, where there is one."""
        if self.ema is None:
            yield
            return
        try:
            with self.ema.applied():
                regathered(self.model)
                yield
        finally:
            regathered(self.model)

    def fixed_clips(self) -> tuple[Tensor, Tensor]:
        """Clips and keys of the first readable held-out videos (of the training videos, where none are held out)."""
        if self.fixed is None:
            self.fixed = self.world.first(self._read_fixed_clips)
        return self.fixed

    def _read_fixed_clips(self) -> tuple[Tensor, Tensor]:
        found: list[Sample] = []
        judged = self.setup.judged_clips()
        known = [Verdict(item, item, reason) for slot, item, reason in self.verdicts.found if slot == HELD_OUT_SLOT]
        for sample in self.read_fixed(judged, range(len(judged)), known):
            self._keep_verdicts([Verdict(HELD_OUT_SLOT, bad.item, bad.reason) for bad in sample.bad if bad.verdict])
            self._note_bad(sample.bad)
            if len(sample.clips):
                found.append(sample)
            if len(found) == (PICTURE_CLIPS if self.setup.held_out is None else HELD_OUT_CLIPS):
                break
        if not found:
            kept = self.setup.held_out is not None
            which = "videos kept out of training" if kept else "videos"
            raise UserError(
                f"none of the {which} can be read; {self.run.bad_files} has the reasons.",
                "Mend or remove them, or begin a new run with --holdout 0." if kept else "Mend or remove them.",
            )
        return torch.cat([s.clips for s in found]), torch.cat([s.keys for s in found])

    def read_fixed(self, clips: FixedClips, items: Sequence[int], verdicts: Sequence[Verdict] = ()) -> Iterator[Sample]:
        """Clips that stay the same, read by workers as training clips are."""
        timeout = self.options.file_timeout or None
        return read_fixed(
            clips, items, workers=self.setup.workers, timeout=timeout, verdicts=verdicts, warn=self.log.warning
        )

    # Who was unreadable

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on, and notes what they say of their videos."""
        for batch in batches:
            self.news.bad += batch.bad
            self.news.verdicts += batch.verdicts
            self.news.shrunk += batch.shrunk
            self.news.repeated += batch.repeated
            if self.world.size == 1:
                self.hear()
            yield batch

    def write_bad_files(self) -> None:
        """When the run ends, however it does."""
        try:
            if self.world.main:
                self.bad.flush()
        except OSError as error:
            self.log.warning(f"{self.run.bad_files} could not be written ({error}).")

    def hear(self) -> None:
        """Notes the news of all processes; several call it together, at log lines and saves."""
        every = self.world.gather(self.news)
        self.news = News()
        self.shrunk += sum(news.shrunk for news in every)
        self.repeated += sum(news.repeated for news in every)
        self.world.first(lambda: self._note(every))

    def _note(self, every: list[News]) -> None:
        self._keep_verdicts([verdict for news in every for verdict in news.verdicts])
        self._note_bad([file for news in every for file in news.bad])

    def _keep_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        try:
            self.verdicts.add(verdicts)
        except OSError as error:
            raise UserError(
                f'what the run has to know of its videos could not be written into "{self.verdicts.folder}" ({error}).',
                "Make room on the disk, then repeat the command: it goes on from the last checkpoint.",
            ) from None

    def _note_bad(self, files: Sequence[BadFile]) -> None:
        for file in files:
            reason = f"used up to the damage: {file.reason}" if file.used else file.reason
            if self.bad.add(file.path, reason):
                self.log.warning(f"{'damaged' if file.used else 'unreadable'}: {file.path}: {reason}")
            if not file.used:
                self.unreadable.add(file.path)
        share = len(self.unreadable) / self.setup.videos
        if share > self.options.max_bad_share:
            self.bad.flush()
            raise UserError(
                f"{len(self.unreadable)} of {self.setup.videos} videos ({share:.0%}) are unreadable, more than"
                f" max_bad_share {self.options.max_bad_share:g}; {self.run.bad_files} names them with their reasons.",
                "Mend or remove them, or raise --max-bad-share.",
            )

    def _say_once(self, count: int, text: str) -> None:
        """Says it when it first happens; the numbers go on in every line of metrics.jsonl."""
        if count and text not in self.said:
            self.said.add(text)
            self.log.message(text.format(count) + " Counted in metrics.jsonl.")
