"""The options of `stmae doctor`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

from stmae.tasks.options import Options


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Say what this machine has: versions, devices, decoders, and what is missing and how to get it."""
