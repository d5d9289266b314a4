"""Several processes are as one: batches, masks, gradients, curves, checkpoints; and how they stop and fail together."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import many
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy import assert_same

from stmae.engine import launch as launching
from stmae.engine.distributed import ALONE
from stmae.engine.launch import Launch, find, first_host
from stmae.errors import UserError
from stmae.tasks import doctor
from stmae.tasks.share import Needed, bring

pytestmark = pytest.mark.timeout(600)  # several processes on a machine that may be busy

# How it ends


@pytest.mark.slow
def test_one_of_several_ends_without_taking_the_interpreter_apart() -> None:
    """Threads end and what is registered is done; what only the interpreter's own end would do is not."""
    program = """
import atexit, sys, threading, time
from stmae.engine import distributed
class Late:
    def __del__(self): print("taken apart")
late = Late()
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
distributed._one_of_several = sys.argv[1] == "several"
distributed.end(7)
print("returned")
"""
    ends = {"several": (["thread", "registered"], 7), "alone": (["returned", "thread", "registered", "taken apart"], 0)}
    for kind, (said, status) in ends.items():
        done = subprocess.run([sys.executable, "-c", program, kind], capture_output=True, text=True, timeout=120)
        assert (done.stdout.splitlines(), done.returncode) == (said, status), done.stderr


# Who am I


def test_a_process_on_its_own() -> None:
    assert find({}) == Launch()
    assert find({"WORLD_SIZE": "1", "RANK": "0"}).size == 1
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "a[1-2]"}
    assert find(batch_script).size == 1, "a batch script is no task of srun's"
    assert ALONE.main
    assert ALONE.gather(3) == [3]
    assert ALONE.broadcast("x") == "x"
    tensor = torch.ones(2)
    assert ALONE.sum_(tensor) is tensor
    assert ALONE.ask(lambda: 7)() == 7


def test_torchruns_environment() -> None:
    env = {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "SLURM_PROCID": "1",
        "MASTER_ADDR": "head", "MASTER_PORT": "1234",
    }  # fmt: skip
    launch = find(env)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (5, 8, 1, 4)
    assert (launch.by, launch.hosts, launch.main) == ("torchrun", 2, False)
    assert (launch.address, launch.port, launch.agent) == ("head", 1234, False)
    assert find({**env, "TORCHELASTIC_USE_AGENT_STORE": "True"}).agent
    with pytest.raises(UserError, match="MASTER_PORT is missing"):
        find({name: value for name, value in env.items() if name != "MASTER_PORT"})
    with pytest.raises(UserError, match="RANK is missing"):
        find({"WORLD_SIZE": "2"})


def test_slurms_environment() -> None:
    env = {
        "SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "gpu[007-008,12],x1",
        "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "4711", "SLURM_TASKS_PER_NODE": "4,3", "SLURM_NODEID": "1",
    }  # fmt: skip
    launch = find(env)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (5, 7, 1, 3)
    assert (launch.address, launch.by) == ("gpu007", "Slurm")
    assert 20000 <= launch.port < 30000
    assert find({**env, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}).port == launch.port, "all know the same port"
    assert find({**env, "SLURM_JOB_ID": "4712"}).port != launch.port, "two jobs on a host do not meet"
    told = find({**env, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert (told.address, told.port) == ("head", 1234)
    assert find({**env, "SLURM_STEP_NUM_TASKS": "1"}).size == 1
    with pytest.raises(UserError, match="where they can meet"):
        find({**env, "SLURM_JOB_NODELIST": ""})


def test_cores_of_a_task_that_slurm_binds_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    task = {"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "a",
            "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "8",
            "SLURM_CPUS_ON_NODE": "64"}  # fmt: skip
    for name, value in task.items():
        monkeypatch.setenv(name, value)
    for bound, own in [(8, 8), (64, 8), (4, 4), (2, 2)]:
        monkeypatch.setattr(launching, "cores", lambda bound=bound: bound)
        assert launching.own_cores() == own
    for name in task:
        monkeypatch.delenv(name)
    by_torchrun = {"WORLD_SIZE": "8", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "a",
                   "MASTER_PORT": "1"}  # fmt: skip
    for name, value in by_torchrun.items():
        monkeypatch.setenv(name, value)
    assert launching.own_cores() == 1, "torchrun binds nothing: all share what there is"


class Both:
    """Rank 1 of two processes, on a host of its own; `sent` is what rank 0 broadcasts, one after the other."""

    main = False

    def __init__(self, *sent: Any) -> None:
        self.sent = list(sent)

    def broadcast(self, value: Any) -> Any:
        return self.sent.pop(0)

    def gather(self, value: Any) -> list[Any]:
        return [("first", []) if isinstance(value, tuple) else type(value)(), value]


def test_hosts_get_the_tables_of_packs_that_they_lack(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    table = tmp_path / "cache" / "indexes" / "a.safetensors"
    needed = Needed((str(tmp_path / "videos"),), (str(table),))
    bring(needed, Both(needed, b"the table"))  # type: ignore[arg-type]
    assert table.read_bytes() == b"the table"
    bring(needed, Both(needed))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'nowhere" is not on .* \(rank 1\)'):
        bring(needed, Both(Needed((str(tmp_path / "nowhere"),))))  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    bad = Needed((), (str(tmp_path / "file" / "a.safetensors"),))
    with pytest.raises(UserError, match="cannot be written on"):
        bring(bad, Both(bad, b"the table"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "hosts, first",
    [
        ("node7", "node7"), ("n1,n2", "n1"), ("gpu[07-09,12],old1", "gpu07"), ("a[3,5-6]", "a3"),
        ("a[1-2]b[3,4]", "a1b3"), ("r[10-12].cluster.org", "r10.cluster.org"), ("gpu-a-1,gpu-a-2", "gpu-a-1"), ("", ""),
    ],
)  # fmt: skip
def test_the_first_host_of_slurms_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_doctor_sees_what_keeps_processes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def advice(**variables: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "ib0")])
            patch.setattr(socket, "gethostbyname", lambda name: variables.pop("address", "10.0.0.7"))
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "WORLD_SIZE", "RANK"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                if name != "address":
                    patch.setenv(name, value)
            report = doctor.Report()
            doctor._cluster(report)
        return " ".join(part for pair in report.advice for part in pair)

    assert advice() == ""
    assert advice(address="127.0.1.1") == ""
    assert "Set GLOO_SOCKET_IFNAME" in advice(address="127.0.1.1", SLURM_JOB_NUM_NODES="2")
    assert advice(address="127.0.1.1", SLURM_JOB_NUM_NODES="2", GLOO_SOCKET_IFNAME="eth0") == ""
    assert "names eth1, which this host lacks" in advice(GLOO_SOCKET_IFNAME="eth1")
    assert "names wlan" in advice(NCCL_SOCKET_IFNAME="wlan,eth")
    assert advice(NCCL_SOCKET_IFNAME="ib,eth") == advice(NCCL_SOCKET_IFNAME="^docker") == ""
    assert "Put srun before" in advice(SLURM_NTASKS="4", SLURM_PROCID="0")
    assert advice(SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_STEP_ID="0", SLURM_JOB_NODELIST="a") == ""
    assert "RANK is missing" in advice(WORLD_SIZE="2")


# Together


class Outcome:
    """What the scenarios of `many.py` gave, by name and rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, rank: int = 0) -> dict[str, Any]:
        path = self.folder / f"{name}-{rank}.pt"
        assert path.exists(), f"rank {rank} did not get through {name}"
        return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Four processes on gloo go through all scenarios, each in its own world."""
    folder = tmp_path_factory.mktemp("many")
    ports = free_ports(len(many.scenarios()))
    command = [sys.executable, many.__file__, str(folder), *map(str, ports)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return Outcome(folder)


def free_ports(count: int) -> list[int]:
    """Below those that the system hands out: else another test's server may take one before its scenario begins."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] * (port not in found)
    return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        largest = tensor.abs().max().clamp(min=1e-30)
        assert (tensor - other[name]).abs().max() <= tolerance * largest, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_first_gradients_do_not_depend_on_processes_or_accumulation(outcome: Outcome, kind: str) -> None:
    alone = outcome(f"{kind}-1-ddp-1")
    assert len(alone["gradients"]) > 20
    assert all(tensor.dtype == torch.float64 and tensor.abs().max() > 0 for tensor in alone["gradients"].values())
    for size, strategy, accumulate in many.WORLDS[kind]:
        for rank in range(size):
            assert_close(
                outcome(f"{kind}-{size}-{strategy}-{accumulate}", rank)["gradients"], alone["gradients"], 1e-12
            )


@pytest.mark.slow
def test_batches_and_masks_are_bit_equal_at_any_number_of_processes(outcome: Outcome) -> None:
    alone = outcome("mae-1-ddp-1")
    assert len(alone["keys"][0]) == many.BATCH
    for size, strategy, accumulate in many.GRADIENTS:
        made = outcome(f"mae-{size}-{strategy}-{accumulate}")
        assert torch.equal(made["keys"][0], alone["keys"][0])
        assert torch.equal(made["hidden"][0], alone["hidden"][0])
        assert made["cursor"] == alone["cursor"] == many.BATCH // many.REPEATS
    for name in ("curve-2-ddp", "curve-4-hybrid"):
        keys = outcome(name)["keys"]
        assert len(keys) == 6
        assert all(torch.equal(one, other) for one, other in zip(keys, outcome("curve-1-ddp")["keys"], strict=True))


@pytest.mark.slow
def test_curves_do_not_depend_on_the_number_of_processes(outcome: Outcome) -> None:
    alone = outcome("curve-1-ddp")
    assert alone["losses"][-1] < 0.98 * alone["losses"][0]
    for name in ("curve-2-ddp", "curve-4-ddp", "curve-2-fsdp", "curve-4-hybrid"):
        made = outcome(name)
        assert made["losses"] == pytest.approx(alone["losses"], rel=1e-5)  # logged in float32
        assert made["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        assert made["clips"] == alone["clips"] == [many.BATCH * step for step in range(1, 7)]
        assert_close(made["weights"], alone["weights"], 1e-6)


@pytest.mark.slow
def test_dropout_is_that_of_the_clips_place_and_not_of_the_rank(outcome: Outcome) -> None:
    one, two = outcome("dropout-1"), outcome("dropout-2")
    assert_close(two["weights"], one["weights"], 1e-9)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6)


@pytest.mark.slow
def test_checkpoints_move_between_any_number_of_processes_and_strategies(outcome: Outcome) -> None:
    made = [outcome(f"moved-{number}") for number in range(1, len(many.MOVES) + 1)]
    assert [each["start"] for each in made] == list(range(len(many.MOVES)))
    losses = [each["losses"][-1] for each in made]
    assert losses[:6] == pytest.approx(outcome("curve-1-ddp")["losses"], rel=1e-5)
    assert made[-1]["cursor"] == len(many.MOVES) * many.BATCH // many.REPEATS
    assert_close(made[5]["weights"], outcome("curve-1-ddp")["weights"], 1e-6)


@pytest.mark.slow
def test_one_process_told_to_stop_stops_all_after_the_same_step(outcome: Outcome) -> None:
    told = [outcome("stop", rank) for rank in range(2)]
    assert told[0] == told[1]
    assert told[0]["status"] == 75
    assert 2 <= told[0]["step"] <= 3
    assert (outcome.folder / "told" / f"step-{told[0]['step']:06d}" / "manifest.json").exists()


@pytest.mark.slow
def test_a_step_that_is_not_finite_in_one_process_is_skipped_in_all(outcome: Outcome) -> None:
    one, two = outcome("nan", 0), outcome("nan", 1)
    assert one["skipped"] == two["skipped"] == [0.0, 1.0, 1.0]
    assert all(tensor.isfinite().all() for tensor in one["weights"].values())


@pytest.mark.slow
def test_a_mistake_that_rank_0_finds_is_everybodys(outcome: Outcome) -> None:
    for rank in range(4):
        assert outcome("first", rank) == {"error": "the disk is full. Make room.", "sum": 10.0}


@pytest.mark.slow
def test_all_roll_back_together(outcome: Outcome) -> None:
    one, two = outcome("rolled", 0), outcome("rolled", 1)
    assert one == two
    assert (one["attempts"], one["start"]) == (2, 2)  # the bad steps and as many before them are left out
    assert one["cursor"] == 9 * many.BATCH // many.REPEATS


@pytest.mark.slow
def test_what_rank_0_finds_before_all_meet_is_told_to_all(outcome: Outcome) -> None:
    assert outcome("vain", 0)["error"] == "there are no videos. Look elsewhere."
    said = "rank 0 ended before training began: there are no videos. Look elsewhere."
    assert [outcome("vain", rank)["lost"] for rank in range(1, 4)] == [said] * 3


@pytest.mark.slow
def test_processes_that_were_started_with_different_options_are_refused(outcome: Outcome) -> None:
    for rank in range(2):
        assert "rank 1: batch_size: 8 on rank 0, 16 there" in outcome("otherwise", rank)["error"]


@pytest.mark.slow
def test_a_lost_process_ends_all_with_the_reason_in_bounded_time(outcome: Outcome) -> None:
    failed = outcome("fails", 0)
    assert "rank 1 ended: 50 videos in a row could not be read. Look at the files." in failed["lost"]
    assert "50 videos" in outcome("fails", 1)["error"]
    killed = outcome("killed", 0)
    assert "rank 1 is gone or hangs without a word" in killed["lost"]
    hangs = outcome("hangs", 0)
    assert "rank 1 is gone or hangs" in hangs["lost"]
    assert failed["seconds"] < 20
    assert killed["seconds"] < 20
    assert hangs["seconds"] < 20


# The command


def words(videos: Path, out: Path, **options: Any) -> list[str]:
    """`stmae pretrain` as a command line."""
    values = {
        "model": "vit_tiny", "frames": 4, "image_size": 32, "patch": "2 16 16", "target": "pixels", "decoder_width": 32,
        "decoder_depth": 1, "decoder_heads": 2, "epochs": 12, "batch_size": 8, "repeats": 2, "lr": 1e-3, "clip_grad": 1,
        "workers": 0, "precision": "fp32", "log_every": 1, "evaluate_every": 4, "save_every": 2, "holdout": 0.2,
        "device": "cpu", "threads": 1, **options,
    }  # fmt: skip
    flags = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", *str(value).split())]
    return ["-m", "stmae", "pretrain", str(videos), "--out", str(out), *flags]


def lines_of(run: Path, *names: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines if all(name in line for name in names)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def tasks(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of two processes with the environment that srun gives to two tasks on one node, and what each said."""
    out = tmp_path_factory.mktemp("tasks") / "run"
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    job |= {"SLURM_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "MASTER_PORT": str(free_ports(1)[0])}
    running = [
        subprocess.Popen(
            [sys.executable, *words(videos, out, parallel="fsdp")],
            env=environment(**job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [task.communicate(timeout=200)[0] for task in running]
    assert [task.returncode for task in running] == [0, 0], said
    return out, said


@pytest.mark.slow
def test_sruns_tasks_train_as_one_process_does(videos: Path, tasks: tuple[Path, list[str]], tmp_path: Path) -> None:
    two, said = tasks
    assert "2, fsdp (as asked)" in said[0]
    assert said[1] == "", "only rank 0 speaks"
    command = [sys.executable, *words(videos, tmp_path / "one")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "grad_norm", "held_out_loss", "epoch"):
        once, twice = lines_of(tmp_path / "one", "step", name), lines_of(two, "step", name)
        assert len(once) > 1
        assert twice == [pytest.approx(line, rel=1e-3) for line in once]


@pytest.mark.slow
def test_torchrun_restarts_after_a_process_was_killed_and_goes_on_exactly(
    videos: Path, tasks: tuple[Path, list[str]], tmp_path: Path
) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    port, out = str(free_ports(1)[0]), tmp_path / "run"
    command = [sys.executable, *launcher, "--master-port", port, *words(videos, out, parallel="fsdp")]
    broken = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 150
    while not (out / "checkpoints" / "step-000002").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{broken.pid}/task/{broken.pid}/children").read_text().split()
    second = next(pid for pid in children if b"LOCAL_RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    said = broken.communicate(timeout=250)[0]
    assert broken.returncode == 0, said
    assert "rank 0 cannot go on: rank 1 is gone" in said
    assert "going on from step" in said
    losses = lines_of(tasks[0], "step", "loss")
    assert lines_of(out, "step", "loss") == losses
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
    saved = [load_file(folder / "encoder.safetensors") for folder in (out, tasks[0])]
    assert_same(*saved)
