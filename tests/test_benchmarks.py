"""The benchmarks run and write down what they claim; how fast anything is, no test asks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stmae.data.synthetic import write_videos
from stmae.model.mae import MaskedAutoencoder
from stmae.model.masking import agnostic
from stmae.model.sizes import mae_config

ROOT = Path(__file__).resolve().parents[1]


def run(tmp_path: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_speed(tmp_path: Path) -> None:
    """Two cells after one another stand in one report; what a side's numbers say follows from its seconds."""
    small = "--model vit_tiny --batch 1 --frames 4 --image-size 32 --repeats 2 --threads 1 --device cpu"
    for cell in ("base-fp32", "inference"):
        run(tmp_path, "benchmarks/speed.py", *small.split(), "--cells", cell, "--out", str(tmp_path))
    (result,) = tmp_path.glob("speed-*.json")
    report = json.loads(result.read_text())
    assert list(report["cells"]) == ["base-fp32", "inference"]
    for cell in report["cells"].values():
        ours = cell["sides"]["stmae"]
        for side in cell["sides"].values():
            assert len(side["seconds"]) == 2
            assert side["slowest"] <= side["clips_per_second"] <= side["fastest"]
            assert side["ratio"] == pytest.approx(ours["clips_per_second"] / side["clips_per_second"])
            assert 0 < side["share_of_matmul"] < 1
            assert side["peak_memory"] > 2**20
            assert side["flops_per_clip"] == pytest.approx(ours["flops_per_clip"], rel=0.15)
    page = result.with_suffix(".md").read_text()
    assert all(cell["command"] in page for cell in report["cells"].values())


def test_the_reference_style_is_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our weights and mask it gives our loss: the speed benchmark compares two ways to the same numbers."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from reference_style import PlainAutoencoder

    config = mae_config("vit_tiny", frames=4, image_size=32, mask_ratio=0.75, decoder_width=64, decoder_heads=2)
    ours, theirs = MaskedAutoencoder(config), PlainAutoencoder(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        theirs.load_state_dict(plainly(ours))
    clip = torch.randn(2, 3, 4, 32, 32)
    hidden = agnostic(torch.rand(2, 8), 2)
    torch.testing.assert_close(theirs(clip, hidden), ours(clip, hidden=hidden).loss, rtol=1e-5, atol=0)


def plainly(model: MaskedAutoencoder) -> dict[str, torch.Tensor]:
    """Our weights under the reference style's names: q, k, v apart, the patch as a kernel, one table of positions."""
    state, clip = model.state_dict(), model.config.encoder.clip
    kernel = state["encoder.patch_embed.proj.weight"].unflatten(1, (*clip.patch, clip.channels)).permute(0, 4, 1, 2, 3)
    named = {"embed.weight": kernel, "embed.bias": state["encoder.patch_embed.proj.bias"]}
    for ours, theirs in (("encoder.", ""), ("decoder.", "decoder_")):
        part = model.encoder if ours == "encoder." else model.decoder
        table = torch.cat([part.positions.class_position, part.positions()])
        named |= {f"{theirs}positions": table[None], f"{theirs}class_token": state[f"{ours}class_token"][None]}
        for name in ("norm.weight", "norm.bias"):
            named[f"{theirs}{name}"] = state[f"{ours}{name}"]
        for name, value in state.items():
            if not name.startswith(f"{ours}blocks."):
                continue
            plain = theirs + name.removeprefix(ours).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2")
            if ".qkv." in name:
                named |= {plain.replace("qkv", one): each for one, each in zip("qkv", value.chunk(3), strict=True)}
            else:
                named[plain] = value
    named |= {"mask_token": state["decoder.mask_token"][None]}
    named |= {f"decoder_embed.{end}": state[f"decoder.embed.{end}"] for end in ("weight", "bias")}
    return named | {f"head.{end}": state[f"decoder.head.{end}"] for end in ("weight", "bias")}


@pytest.mark.long
def test_fuzz(videos: Path, tmp_path: Path) -> None:
    """A hundred mutations of generated videos end as frames or with a reason; a stopped run goes on."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted(videos.iterdir())[:4]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "void.mp4").touch()
    common = ["benchmarks/fuzz.py", "--videos", str(folder), "--state", str(tmp_path / "state"), "--out", str(tmp_path)]
    run(tmp_path, *common, "--mutations", "40")
    read = (tmp_path / "state/seed-0.jsonl").read_text().splitlines()
    page = run(tmp_path, *common, "--mutations", "100")
    rows = [json.loads(line) for line in (tmp_path / "state/seed-0.jsonl").read_text().splitlines()]
    assert [json.dumps(row) for row in rows[: len(read)]] == read
    assert len(rows) == 5 + 100
    assert {row["outcome"] for row in rows} <= {"frames", "frames up to damage", "DecodeError"}
    assert sum(row["outcome"] == "frames" for row in rows) > 10
    assert sum(row["outcome"] == "DecodeError" for row in rows) > 10
    assert max(row["kib"] for row in rows) < 1 << 20
    assert "**0** ended otherwise" in page
    number = next(row["case"] for row in rows if row["kind"] == "bits")
    again = run(tmp_path, *common, "--only", number, "--keep", str(tmp_path / "kept.mkv"))
    assert '"outcome": "' in again
    assert (tmp_path / "kept.mkv").stat().st_size


@pytest.mark.long
def test_memory(tmp_path: Path) -> None:
    run(tmp_path, "benchmarks/memory.py", "--clips", "240", "--batch", "4", "--workers", "1", "--out", str(tmp_path))
    report = json.loads((tmp_path / "memory.json").read_text())
    assert report["clips"][-1] >= 200
    assert 20 < report["workers"]["mean"] < 2000
    assert abs(report["workers"]["slope"]) < 100  # MiB per 1,000 clips: every frame of them kept would be more
    assert (tmp_path / "memory.png").stat().st_size > 5000
    assert "95 % interval" in (tmp_path / "memory.md").read_text()


@pytest.mark.long
def test_check_quality(videos, tmp_path):
    (tmp_path / "truth.csv").write_text("first,second\nscene-000.mp4,scene-001.webm\n")
    command = [sys.executable, "benchmarks/check_quality.py", "--videos", str(videos), "--sample", "2"]
    command += ["--workers", "2", "--out", str(tmp_path), "--truth", str(tmp_path / "truth.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["copies"]["MPEG-4 in AVI"]["all"] == [2, 2]
    assert report["truth"] == {"pairs": 1, "found": 0}
    assert report["cuts"]["joints"][1] == 1
    assert report["packed"]["bytes_per_second"] > 0
    assert report["command"] in (tmp_path / "check.md").read_text()


@pytest.mark.long
def test_loading(tmp_path):
    command = [sys.executable, "benchmarks/loading.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # all sides gave the same clips
    report = json.loads((tmp_path / "loading-cpu.json").read_text())
    assert report["tables"].keys() == {"plain, 1", "plain, 4", "packed, 1", "packed, 4"}
    for rows in report["tables"].values():
        assert rows[0]["side"].startswith("stmae")
        assert rows[0]["gain"] == 1
        assert len(rows) >= 6
        for row in rows:
            assert 0 < row["slowest"] <= row["clips_per_second"] <= row["fastest"]
    for parts in report["shares"].values():
        assert parts["decode"] > parts["seek"] >= 0
        assert sum(parts.values()) == pytest.approx(2 * parts["total"])
    assert all(row["clips_per_second"] > 0 for rows in report["fed"].values() for row in rows)
    assert report["command"] in (tmp_path / "loading-cpu.md").read_text()


@pytest.mark.long
def test_packing(videos: Path, tmp_path: Path) -> None:
    command = ["benchmarks/packing.py", "--videos", str(videos), "--quick", "--short-side", "32"]
    run(tmp_path, *command, "--out", str(tmp_path / "results"))
    report = json.loads((tmp_path / "results" / "packing.json").read_text())
    assert {row["workers"] for row in report["packing"]} >= {1}
    assert all(row["items_per_second"] > 0 and row["bytes_out"] > 0 for row in report["packing"])
    assert {row["recipe"] for row in report["recipes"]} >= {"files as they are", "stmae's, gop 17"}
    by_gop = {row["recipe"]: row.get("bytes", 0) for row in report["recipes"]}
    assert by_gop["stmae's, gop 8"] > by_gop["stmae's, gop 250"]
    assert "ms per clip" in (tmp_path / "results" / "packing.md").read_text()


@pytest.mark.long
def test_overhead(tmp_path):
    options = ["--quick", "--repeats", "2", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "benchmarks/overhead.py", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "overhead-cpu.json").read_text())
    (row,) = report["rows"]
    for side in ("bare", "engine"):
        assert len(row["seconds"][side]) == 2
    ratios = [e / b - 1 for e, b in zip(row["seconds"]["engine"], row["seconds"]["bare"], strict=True)]
    assert row["overhead"] == pytest.approx(sum(ratios) / 2)
    page = (tmp_path / "overhead-cpu.md").read_text()
    assert report["command"] in page
    assert f"{row['overhead']:.2%}" in page


@pytest.mark.long
def test_transfer(tmp_path: Path) -> None:
    """Every kind of cell ends, a stopped run goes on, nothing is run twice, and the report says what there is."""
    out = tmp_path / "transfer"
    common = [
        "benchmarks/transfer.py",
        "--smoke",
        "--threads",
        "1",
        "--out",
        str(out),
        "--work",
        str(tmp_path / "work"),
    ]
    assert "out of time" in run(tmp_path, *common, "--footage", "synthetic", "--run", "0.001")
    said = run(tmp_path, *common, "--footage", "synthetic", "--core", "--run", "9")
    assert "mae1-256-s4: " in said
    assert run(tmp_path, *common, "--footage", "synthetic", "--core", "--run", "9").count("...") == 0
    for cell in ("controls", "no-motion-256-s0", "longer-256-s0", "frozen-mae0", "frozen-random0", "time-random0"):
        run(tmp_path, *common, "--footage", "synthetic", "--cell", cell)
    told = json.loads((out / "mae0-256-s0.json").read_text())["predictions"]
    task = json.loads((out / "task.json").read_text())
    assert len(told) == len(task["labels"]) == len(task["clusters"]) == 32
    listed = run(tmp_path, *common, "--list").splitlines()
    assert sum(line.startswith("done") for line in listed) == len(list(out.glob("*.json")))
    write_videos(tmp_path / "free", count=6, seconds=(1.0, 1.5), seed=1)
    for number, name in enumerate(("run", "jump")):
        write_videos(tmp_path / "labelled" / name, count=6, seconds=(1.0, 1.5), seed=5 + number)
    shutil.copy(tmp_path / "labelled/run/scene-000.mp4", tmp_path / "free/copy.mp4")
    given = ["--unlabelled", str(tmp_path / "free"), "--labelled", str(tmp_path / "labelled"), "--run", "9"]
    run(tmp_path, "benchmarks/transfer_real.py", *common[1:], *given)
    pretrained = json.loads((out / "real-pretrain.json").read_text())
    assert pretrained["left_out"] == 1  # it shows what a labelled video shows
    run(tmp_path, *common, "--report")
    page = (tmp_path / "transfer.md").read_text()
    assert "sources in 5 of 5 folds by source" in page
    assert "MAE against from scratch, 256 labels: **" in page
    assert "| random, frozen, attentive probe |" in page
    assert "playback speed" in page
    assert (tmp_path / "transfer.png").stat().st_size > 5000


@pytest.mark.long
def test_growth(tmp_path: Path) -> None:
    run(tmp_path, "benchmarks/growth.py", "--quick", "--threads", "1", "--device", "cpu", "--out", str(tmp_path))
    report = json.loads(next(tmp_path.glob("growth-*.json")).read_text())
    for points in report["axes"].values():
        assert sorted(found["flops"] for found in points) == [found["flops"] for found in points]
        assert all(found["peak_memory"] > 2**20 for found in points)
    assert [found["processes"] for found in report["processes"]] == [1, 2]
    assert all(found["seconds"] > 0 for found in report["start"])
    assert next(tmp_path.glob("growth-*.png")).stat().st_size > 5000


@pytest.mark.long
def test_sparse_vs_dense(tmp_path: Path) -> None:
    options = ["--quick", "--threads", "1", "--device", "cpu", "--state", str(tmp_path), "--out", str(tmp_path)]
    run(tmp_path, "benchmarks/sparse_vs_dense.py", *options)
    measured = next(tmp_path.glob("*.jsonl")).read_text()
    run(tmp_path, "benchmarks/sparse_vs_dense.py", *options)
    assert next(tmp_path.glob("*.jsonl")).read_text() == measured  # nothing is measured twice
    report = json.loads(next(tmp_path.glob("sparse-vs-dense-*.json")).read_text())
    rows = {row["side"]: row for row in report["compute"]}
    assert rows.keys() == {"dense", "sparse 0.5", "sparse 0.75", "sparse 0.9", "sparse 0.95"}
    assert rows["dense"]["gain"] == 1
    assert rows["sparse 0.95"]["gmacs"] < rows["sparse 0.5"]["gmacs"] < rows["dense"]["gmacs"]
    assert report["loading"]["kept"] > 0
    page = next(tmp_path.glob("*.md")).read_text()
    assert report["command"] in page
    assert f"{rows['sparse 0.9']['gain']:.2f}x" in page


@pytest.mark.long
def test_dual_masking(tmp_path: Path) -> None:
    """Speed is measured; scores are those that the ablations' cells have."""
    (tmp_path / "ablations").mkdir()
    for seed, accuracy in enumerate((0.3121, 0.3508)):
        (tmp_path / f"ablations/half-decoded-s{seed}--probe.json").write_text(json.dumps({"accuracy": accuracy}))
    options = ["--quick", "--threads", "1", "--device", "cpu", "--state", str(tmp_path), "--out", str(tmp_path)]
    run(tmp_path, "benchmarks/dual_masking.py", *options)
    report = json.loads(next(tmp_path.glob("dual-masking-*.json")).read_text())
    rows = {row["side"]: row for row in report["rows"]}
    assert rows["all"]["gain"] == 1
    assert rows["half, running cells"]["gmacs"] < 0.75 * rows["all"]["gmacs"]
    page = next(tmp_path.glob("*.md")).read_text()
    assert report["command"] in page
    assert "| 0.312 0.351 |" in page


@pytest.mark.long
def test_ablations(tmp_path: Path) -> None:
    """Every cell is trained and judged on generated footage, once, and the report has them all."""
    out = tmp_path / "ablations"
    places = ["--work", str(tmp_path / "work"), "--decoded", str(tmp_path / "decoded"), "--out", str(out)]
    common = ["benchmarks/ablations.py", "--smoke", "--footage", "synthetic", "--seeds", "1", "--threads", "1", *places]
    run(tmp_path, *common, "--run-for", "5")
    page = (tmp_path / "ablations.md").read_text()
    assert "17 of 17 cells are done" in page
    assert page.count("to do") == 0
    assert "| agnostic 90 % | 0." in page
    assert page.count("one seed only") == 7
    assert {path.name for path in out.glob("*.png")} == {"mask-ratio.png", "mask-kind.png", "decoded.png"}
    assert len((out / "ablations.csv").read_text().splitlines()) == 1 + 10  # a probe's seed of each cell of each axis
    (out / "reading.md").write_text("What it means.")
    told = run(tmp_path, *common, "--list", "--report")
    assert told.count("done") == 17
    assert "## Reading\n\nWhat it means." in (tmp_path / "ablations.md").read_text()


def test_the_best_of_many_is_flattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of settings that are as good as the default the best seems to lead, but not on clips that did not pick it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from untuned import leads

    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 14)
    found = [leads(rng.random(560) < 0.8, rng.random((12, 560)) < 0.8, clusters) for _ in range(50)]
    seeming, true = np.mean(found, axis=0)
    assert seeming > 2
    assert abs(true) < 1
    better = rng.random((12, 560)) < 0.8
    better[7] = rng.random(560) < 0.95
    assert leads(rng.random(560) < 0.8, better, clusters)[1] > 8


@pytest.mark.long
def test_untuned(tmp_path: Path) -> None:
    out = tmp_path / "untuned"
    places = ["--work", str(tmp_path / "work"), "--decoded", str(tmp_path / "decoded"), "--out", str(out)]
    common = ["benchmarks/untuned.py", "--smoke", "--footage", "synthetic", "--threads", "1", *places]
    run(tmp_path, *common, "--run-for", "5")
    page = (tmp_path / "untuned.md").read_text()
    assert "14 of 14 cells are done" in page
    assert "| default | " in page
    assert "The best of the 12 leads by " in page
    assert run(tmp_path, *common, "--list").count("done") == 14
