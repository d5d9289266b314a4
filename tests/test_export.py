"""Exported models compute what the model computes, for any number of clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stmae
from stmae.errors import UserError
from stmae.model.config import BlocksConfig, ClassifierConfig, ClipConfig, EncoderConfig, as_dict
from stmae.model.heads import Classifier
from stmae.weights import ENCODER, save_weights


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[Path, Classifier]:
    torch.manual_seed(0)
    clip = ClipConfig(frames=4, height=16, width=16, patch=(2, 8, 8))
    blocks = BlocksConfig(width=32, depth=1, heads=2, mlp_width=64)
    model = Classifier(ClassifierConfig(encoder=EncoderConfig(clip=clip, blocks=blocks), classes=5)).eval()
    with torch.no_grad():
        model.head.weight.normal_()
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / ENCODER, model.state_dict(), {"model": as_dict(model.config)})
    return tmp_path / "run", model


def clips(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 4, 16, 16), dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_onnx(classifier, tmp_path, int8, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    run, model = classifier
    out = stmae.export(str(run), out=tmp_path / "model.onnx", int8=int8)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [(entry.name, entry.type) for entry in session.get_inputs()] == [("clips", "tensor(uint8)")]
    assert [entry.name for entry in session.get_outputs()] == ["logits"]
    for count in (1, 5):
        batch = clips(count)
        found = torch.from_numpy(session.run(None, {"clips": batch.numpy()})[0])
        wanted = model(batch)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < (0.02 if int8 else 1e-4) * wanted.abs().max()
    assert "written" in capsys.readouterr().out


@pytest.mark.slow
def test_torch_program(classifier, tmp_path):
    run, model = classifier
    out = stmae.export(str(run), out=tmp_path / "model.pt2")
    program = torch.export.load(str(out)).module()
    for count in (1, 3):
        batch = clips(count)
        torch.testing.assert_close(program(batch), model(batch), rtol=0, atol=1e-6)


def test_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        stmae.export(str(tmp_path / "nothing"), out=tmp_path / "a.pt2", int8=True)
    assert "does not exist" in str(caught.value)
    assert "int8 goes with ONNX" in str(caught.value)
    with pytest.raises(UserError, match=r"neither a \.onnx nor a \.pt2"):
        stmae.export(str(tmp_path), out=tmp_path / "model.pb")
