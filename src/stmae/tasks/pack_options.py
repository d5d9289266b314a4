"""The options of `stmae pack`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional

from stmae.errors import Problems, UserError
from stmae.tasks.checks import check_workers, check_writable, positive
from stmae.tasks.options import AnyPath, Source, SourceOptions, default
from stmae.tasks.places import check_source
from stmae.tasks.values import size_in_bytes


@dataclass(frozen=True, kw_only=True)
class PackOptions(SourceOptions):
    """Pack videos, images or arrays into tar shards: few large files in place of many, for sets of any size.

    The original bytes are stored, and training then takes the very clips that it takes from the files. With an option
    that writes videos anew (short_side, fps, gop, quality, segment) the shards are smaller and load faster. Given
    again after being stopped, the command goes on.

    Examples:

        stmae pack videos/ --out shards/
        stmae pack videos/ --out shards/ --short-side 256 --fps 30 --segment 10
    """

    videos: Positional[Source] = field(kw_only=False)
    """Folder, list or shards."""
    out: AnyPath
    """Folder for the shards; made if missing."""
    keep_original: Annotated[bool, default("True, unless an option below asks for videos written anew")] = True
    """Store the original bytes, or write videos anew."""
    short_side: Annotated[int | None, default("256 where videos are written anew")] = None
    """Pixels of the shorter side, at most; 0 keeps the size."""
    fps: Annotated[float | None, default("each video's own")] = None
    """Frames per second, at most."""
    gop: Annotated[int | None, default("17 where videos are written anew")] = None
    """Frames from one key frame to the next, at most: fewer load faster and take more bytes."""
    quality: Annotated[int | None, default("23 where videos are written anew")] = None
    """x264's constant rate factor: 0 is lossless, 18 looks the same as the original, 51 is the worst."""
    segment: Annotated[float | None, default("none: videos stay whole")] = None
    """Seconds after which a long video is cut, so that clips are taken from all of it."""
    shard_size: str = "256MB"
    """Bytes of a shard, such as 256MB or 1GB."""
    workers: Annotated[int | None, default("the machine's cores")] = None
    """Processes that look at videos and write them anew."""

    @property
    def asks_for_new(self) -> bool:
        """Whether an option has a value that means something only where videos are written anew."""
        return any(getattr(self, name) is not None for name in ("short_side", "fps", "gop", "quality", "segment"))

    def check(self, problems: Problems) -> None:
        """Everything `stmae pack` can refuse before it looks into the folder."""
        from stmae.data.opening import paths_of  # brings NumPy, which --help has no need of

        check_source(self, problems)
        if not paths_of(self.videos):
            problems.add(
                "clips from Python have no files to pack.", "Write them as .npy files into a folder, and pack it."
            )
        check_writable("out", self.out, problems, folder=True)
        check_workers(self.workers, problems)
        if self.given.get("keep_original") and self.asks_for_new:
            problems.add(
                "keep_original excludes short_side, fps, gop, quality and segment: these write videos anew.",
                "Leave it out, or leave these out.",
            )
        for name in ("fps", "segment"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name), "Leave it out to keep what the videos have.", problems)
        side, gop, quality = self.short_side, self.gop, self.quality
        problems.check(
            side is None or side == 0 or (side >= 16 and side % 2 == 0),
            f"short_side {side} is not an even number of pixels from 16 on.",
            "Choose such as 256, or 0 to keep the size.",
        )
        problems.check(gop is None or gop >= 1, f"gop {gop} is too small.", "Choose 1 (key frames only) or more.")
        problems.check(
            quality is None or 0 <= quality <= 51,
            f"quality {quality} is not from 0 to 51.",
            "Choose 18 to 28; smaller is better and larger in bytes.",
        )
        try:
            size_in_bytes(self.shard_size)
        except UserError as error:
            problems.extend(error)
