"""Spatiotemporal masked autoencoders: a folder of unlabelled videos in, a video encoder out.

>>> import stmae
>>> stmae.pretrain("videos/", out="runs/first")
>>> encoder = stmae.load("runs/first")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stmae.errors import UserError as UserError
    from stmae.interop import load as load
    from stmae.interop import load_reference as load_reference
    from stmae.interop import save_reference as save_reference
    from stmae.model.sizes import create_model as create_model
    from stmae.tasks.ablate import ablate as ablate
    from stmae.tasks.bench import bench as bench
    from stmae.tasks.check import check as check
    from stmae.tasks.convert import convert as convert
    from stmae.tasks.demo import demo as demo
    from stmae.tasks.doctor import doctor as doctor
    from stmae.tasks.embed import embed as embed
    from stmae.tasks.evaluate import evaluate as evaluate
    from stmae.tasks.export import export as export
    from stmae.tasks.finetune import finetune as finetune
    from stmae.tasks.knn import knn as knn
    from stmae.tasks.maps import maps as maps
    from stmae.tasks.pack import pack as pack
    from stmae.tasks.plan import plan as plan
    from stmae.tasks.predict import predict as predict
    from stmae.tasks.pretrain import pretrain as pretrain
    from stmae.tasks.probe import probe as probe
    from stmae.tasks.push import push as push
    from stmae.tasks.reconstruct import reconstruct as reconstruct
    from stmae.tasks.tokenizer import tokenizer as tokenizer

    __version__: str

# Name -> the module it comes from, imported when the name is first used: `import stmae` costs nothing, torch least.
_HOME = {
    "UserError": "stmae.errors",
    "ablate": "stmae.tasks.ablate",
    "bench": "stmae.tasks.bench",
    "check": "stmae.tasks.check",
    "convert": "stmae.tasks.convert",
    "create_model": "stmae.model.sizes",
    "demo": "stmae.tasks.demo",
    "doctor": "stmae.tasks.doctor",
    "embed": "stmae.tasks.embed",
    "evaluate": "stmae.tasks.evaluate",
    "export": "stmae.tasks.export",
    "finetune": "stmae.tasks.finetune",
    "knn": "stmae.tasks.knn",
    "load": "stmae.interop",
    "load_reference": "stmae.interop",
    "maps": "stmae.tasks.maps",
    "pack": "stmae.tasks.pack",
    "plan": "stmae.tasks.plan",
    "predict": "stmae.tasks.predict",
    "pretrain": "stmae.tasks.pretrain",
    "probe": "stmae.tasks.probe",
    "push": "stmae.tasks.push",
    "reconstruct": "stmae.tasks.reconstruct",
    "save_reference": "stmae.interop",
    "tokenizer": "stmae.tasks.tokenizer",
}

__all__ = [
    "UserError",
    "__version__",
    "ablate",
    "bench",
    "check",
    "convert",
    "create_model",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "knn",
    "load",
    "load_reference",
    "maps",
    "pack",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "push",
    "reconstruct",
    "save_reference",
    "tokenizer",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("stmae")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f'module "stmae" has no "{name}"; it has {", ".join(__all__)}')
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
