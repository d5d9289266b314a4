"""The benchmarks run and write down what they claim; how fast anything is, no test asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_step(tmp_path):
    small = (
        "--model vit_tiny --batch 1 --frames 4 --image-size 32 --repeats 2 --threads 1 --device cpu --precision fp32"
    )
    command = [sys.executable, "benchmarks/step.py", *small.split(), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("step-*.json")
    report = json.loads(result.read_text())
    ours, theirs = report["rows"]
    assert (ours["side"], theirs["side"]) == ("stmae", "VideoMAE")
    for row in (ours, theirs):
        assert len(row["seconds"]) == 2
        assert row["slowest"] <= row["clips_per_second"] <= row["fastest"]
        assert 0 < row["share_of_matmul"] < 1
    assert ours["flops_per_clip"] == pytest.approx(theirs["flops_per_clip"], rel=0.1)
    page = result.with_suffix(".md").read_text()
    assert report["command"] in page
    assert f"{ours['clips_per_second']:.3g}" in page
