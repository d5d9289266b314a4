"""Two hosts on one machine: two network namespaces joined by a cable (a veth pair), torchrun in each.

    sudo python benchmarks/two_hosts.py                     # 2 hosts with 1 process each, beside one process alone
    sudo python benchmarks/two_hosts.py --processes 2 --parallel hybrid

The namespaces share nothing but the cable and the disk; a process can reach the other host over the cable only.
Compares the curves of a small training with those of one process; ends with 0 where they agree. Linux and root only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stmae.data.synthetic import write_videos

CABLE = "stmae0"  # the interface's name in both namespaces
PORT = 29411
TOLERANCE = 1e-3  # relative, of logged losses: float32 sums in another order
OPTIONS = (
    "--model vit_tiny --frames 4 --image-size 32 --patch 2 16 16 --target pixels --decoder-width 32 --decoder-depth 1"
    " --decoder-heads 2 --epochs 16 --batch-size 8 --repeats 2 --lr 1e-3 --clip-grad 1 --workers 0 --precision fp32"
    " --log-every 1 --evaluate-every 8 --save-every 8 --holdout 0.2 --device cpu --threads 1"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="on each host")
    parser.add_argument("--parallel", default="ddp", choices=("ddp", "fsdp", "hybrid"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, two_namespaces() as (hosts, addresses):
        work = Path(folder)
        write_videos(work / "videos", count=6, seconds=(1.0, 1.5))
        command = ["-m", "stmae", "pretrain", str(work / "videos"), *OPTIONS.split()]
        alone = subprocess.run(
            [sys.executable, *command, "--out", str(work / "alone")], env=environment(), capture_output=True, text=True
        )
        assert alone.returncode == 0, alone.stderr
        running = [
            subprocess.Popen(
                [
                    "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                    "--nproc-per-node", str(asked.processes), "--rdzv-backend", "c10d", "--rdzv-id", "two-hosts",
                    "--rdzv-endpoint", f"{addresses[0]}:{PORT}", "--local-addr", address,
                    # The name of this machine resolves to neither address, so neither knows itself in the endpoint.
                    "--rdzv-conf", f"is_host={int(host == hosts[0])}",
                    *command, "--out", str(work / "two"), "--parallel", asked.parallel,
                ],
                env=environment(GLOO_SOCKET_IFNAME=CABLE), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for host, address in zip(hosts, addresses, strict=True)
        ]  # fmt: skip
        said = [process.communicate(timeout=600)[0] for process in running]
        if any(process.returncode for process in running):
            print(*said, sep="\n--- the other host ---\n")
            return 1
        return compare(work, said, asked.processes)


def compare(work: Path, said: list[str], processes: int) -> int:
    """Prints both curves; 0 where they agree."""
    print(*[line.strip() for text in said for line in text.splitlines() if line.strip().startswith("processes ")])
    print(f"{'step':>6}{'one process':>16}{f'2 hosts x {processes}':>16}{'difference':>14}")
    one, two = (curve(work / name / "metrics.jsonl") for name in ("alone", "two"))
    worst = 0.0
    for step in one:
        difference = abs(one[step] - two[step]) / one[step]
        worst = max(worst, difference)
        print(f"{step:>6}{one[step]:>16.6f}{two[step]:>16.6f}{difference:>14.1e}")
    agree = one.keys() == two.keys() and worst <= TOLERANCE
    print(f"largest difference {worst:.1e}: the curves {'agree' if agree else 'do NOT agree'}")
    return 0 if agree else 1


def curve(path: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


@contextmanager
def two_namespaces() -> Iterator[tuple[list[str], list[str]]]:
    """Names and addresses of two hosts; both are gone afterwards."""
    hosts = [f"stmae-{os.getpid()}-{letter}" for letter in "ab"]
    addresses = ["10.213.77.1", "10.213.77.2"]
    if shutil.which("ip") is None:
        sys.exit("This needs the command ip (package iproute2).")
    try:
        for host in hosts:
            ip("netns", "add", host)
        ip("link", "add", CABLE, "netns", hosts[0], "type", "veth", "peer", "name", CABLE, "netns", hosts[1])
        for host, address in zip(hosts, addresses, strict=True):
            ip("-n", host, "address", "add", f"{address}/24", "dev", CABLE)
            ip("-n", host, "link", "set", CABLE, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield hosts, addresses
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"`ip {' '.join(words)}` failed ({done.stderr.strip()}); this needs root and network namespaces.")


if __name__ == "__main__":
    sys.exit(main())
