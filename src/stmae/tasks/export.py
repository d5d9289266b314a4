"""`stmae export`: a model for other runtimes, as ONNX file or torch.export program."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from stmae.errors import UserError
from stmae.interop.export import TOLERANCE, write_onnx, write_program
from stmae.interop.native import load_model
from stmae.tasks.export_options import ExportOptions
from stmae.tasks.task import task


@task(ExportOptions)
def export(options: ExportOptions) -> Path:
    """Returns:
        The file written. It takes uint8 clips (B, C, T, H, W) and normalises them itself.

    Raises:
        UserError: a package that is missing, or an exported model that computes something else.
    """
    model = load_model(options.model)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            if options.out.suffix == ".onnx":
                off = write_onnx(options.out, model, options.features, int8=options.int8)
            else:
                off = write_program(options.out, model, options.features)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f'"{options.out}" cannot be written: {reason}.', "Choose another --out.") from None
    if off > TOLERANCE and not options.int8:
        options.out.unlink()
        raise UserError(
            f"the exported model differs from the model by {off:.1e} of its largest output; nothing was kept.",
            "Please report it with `stmae doctor`'s lines, or try the other format.",
        )
    how = " (weights in 8 bits)" if options.int8 else ""
    Console(highlight=False, soft_wrap=True).print(
        f"written: {options.out}{how}; on random clips it differs from the model by {off:.1e} of the largest output"
    )
    return options.out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of their inner steps at length; what matters is checked afterwards."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
