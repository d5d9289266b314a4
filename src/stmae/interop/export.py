"""Models for other runtimes: torch.export programs and ONNX files, checked against the model they were made of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.encoder import Features, VideoViT
from ..model.heads import Classifier
from ..model.mae import MaskedAutoencoder
from .reference import Model

TOLERANCE = 1e-4  # of an exported program, in fp32, relative to the largest output


class Deployed(nn.Module):
    """uint8 clips (B, C, T, H, W) in; a classifier's logits (B, classes), else features of the kind asked for."""

    def __init__(self, model: Model, features: Features) -> None:
        super().__init__()
        self.model = model.encoder if isinstance(model, MaskedAutoencoder) else model
        self.features = features

    def forward(self, clips: Tensor) -> Tensor:
        if isinstance(self.model, VideoViT):
            return self.model(clips, features=self.features)
        assert isinstance(self.model, Classifier)
        return self.model(clips)

    @property
    def output(self) -> str:
        return self.features if isinstance(self.model, VideoViT) else "logits"

    def example(self, clips: int = 2) -> Tensor:
        """Random pixels in the model's own size."""
        config = self.model.config if isinstance(self.model, VideoViT) else self.model.config.encoder
        shape = (clips, config.clip.channels, *config.clip.shape)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def program(model: Model, features: Features = "pooled") -> torch.export.ExportedProgram:
    """The model as a `torch.export` program, for any number of clips of its own size."""
    deployed = Deployed(model, features).eval()
    batch = torch.export.Dim("clips", min=1, max=4096)
    with torch.no_grad():
        return torch.export.export(deployed, (deployed.example(),), dynamic_shapes=({0: batch},))


def write_program(path: Path, model: Model, features: Features = "pooled") -> float:
    """Writes a .pt2 file, reads it back and returns the largest difference from the model, relative to its outputs."""
    torch.export.save(program(model, features), str(path))
    deployed = Deployed(model, features).eval()
    clips = deployed.example(3)
    with torch.no_grad():
        return _difference(torch.export.load(str(path)).module()(clips), deployed(clips))


def write_onnx(path: Path, model: Model, features: Features = "pooled", *, int8: bool = False) -> float:
    """Writes an ONNX file (input "clips", any number of them; one output), runs it with onnxruntime and returns the
    largest difference from the model, relative to its largest output.

    Args:
        int8: weights of matrix products as 8-bit integers, activations quantised as they come.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    deployed = Deployed(model, features).eval()
    onnx = torch.onnx.export(
        program(model, features),
        dynamo=True,
        input_names=["clips"],
        output_names=[deployed.output],
        verbose=False,
        optimize=True,
    )
    assert onnx is not None
    onnx.save(str(path))
    if int8:
        _quantise(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    clips = deployed.example(3)
    with torch.no_grad():
        return _difference(torch.from_numpy(session.run(None, {"clips": clips.numpy()})[0]), deployed(clips))


def _quantise(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(path))
    del model.graph.value_info[:]  # shapes noted for the transposed weights contradict those that it infers
    # The blocks' products hold nearly all weights; the patch embedding, whose inputs spread widest, and a classifier's
    # head (a Gemm) stay exact. Unsigned weights: signed ones overflow in silence on processors without VNNI.
    products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    quantize_dynamic(
        model,
        str(path),
        weight_type=QuantType.QUInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=products[:1],
    )


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _require(*packages: str) -> None:
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX files need {', '.join(missing)}.", "Install with: pip install 'stmae[export]'")
