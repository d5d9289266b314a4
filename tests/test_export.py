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


def coloured(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a square somewhere that is brighter in some of the colours: in which, are eight classes."""
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randint(0, 160, (count, 3, 4, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 8, (count,), generator=generator)
    places = torch.randint(0, 9, (count, 2), generator=generator)
    for video, label, (row, column) in zip(videos, labels.tolist(), places.tolist(), strict=True):
        for colour in range(3):
            video[colour, :, row : row + 8, column : column + 8] += 90 * (label >> colour & 1)
    return videos, labels


@pytest.mark.slow
def test_int8_judges_as_the_model_does(tmp_path):
    """On a trained classifier, for which the largest of eight logits means something."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    clip = ClipConfig(frames=4, height=16, width=16, patch=(2, 4, 4))
    blocks = BlocksConfig(width=64, depth=3, heads=4, mlp_width=128)
    model = Classifier(ClassifierConfig(encoder=EncoderConfig(clip=clip, blocks=blocks), classes=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(100):
        videos, labels = coloured(32, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(videos), labels).backward()
        optimizer.step()
    model.eval()
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / ENCODER, model.state_dict(), {"model": as_dict(model.config)})
    videos, labels = coloured(1000, 999_999)
    with torch.no_grad():
        wanted = model(videos)
    right = (wanted.argmax(dim=1) == labels).float().mean()
    assert right > 0.9, "it has learnt its classes"
    sizes = []
    for int8, atol in ((False, 1e-4), (True, None)):
        out = stmae.export(str(tmp_path / "run"), out=tmp_path / f"int8-{int8}.onnx", int8=int8)
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"clips": videos.numpy()})[0])
        sizes.append(out.stat().st_size)
        equal = (found.argmax(dim=1) == wanted.argmax(dim=1)).float().mean().item()
        print(f"int8 {int8}: {equal:.3%} equal top-1, {right:.1%} right, {out.stat().st_size} bytes")
        assert equal >= 0.99
        if atol:
            assert (found - wanted).abs().max() < atol * wanted.abs().max()
    assert sizes[1] < 0.6 * sizes[0]


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
