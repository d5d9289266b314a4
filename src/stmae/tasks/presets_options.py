"""The options of `stmae presets`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

from stmae.tasks.options import Options


@dataclass(frozen=True, kw_only=True)
class PresetsOptions(Options):
    """List the presets of a command and what each sets."""
