"""Which of several processes this one is: read from the environment of torchrun or Slurm's srun, without torch.

There are no flags for it: `torchrun ... -m stmae pretrain ...` and `srun python -m stmae pretrain ...` are all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stmae.errors import UserError

FIRST_PORT, PORTS = 20000, 10000  # where jobs of Slurm meet: a port that follows from the job's number


@dataclass(frozen=True)
class Launch:
    """One process among those that were started together.

    Attributes:
        rank, size: of this process, and how many there are.
        local_rank, local_size: the same among those of this host.
        address, port: where they meet, on the host of rank 0.
        by: "torchrun", "Slurm", or "" for a process on its own.
        agent: torchrun has opened the place where they meet itself; otherwise rank 0 does.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = ""
    port: int = 0
    by: str = ""
    agent: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that scans, writes and speaks for all."""
        return self.rank == 0

    @property
    def hosts(self) -> int:
        return -(-self.size // self.local_size)


def find(environment: Mapping[str, str] | None = None) -> Launch:
    """This process's place. torchrun goes before Slurm, since torchrun may itself be started by srun.

    Raises:
        UserError: the environment says there are several processes but not which one this is.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        return _torchrun(env)
    if int(env.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"WORLD_SIZE says that {env['WORLD_SIZE']} processes were started, and RANK is missing, which of them"
            " this is.",
            "Start them with torchrun or srun, or unset WORLD_SIZE.",
        )
    # A batch script has Slurm's variables too, but only what srun starts is one of several tasks.
    if "SLURM_PROCID" in env and ("SLURM_STEP_ID" in env or "SLURM_STEPID" in env):
        return _slurm(env)
    return Launch()


def _torchrun(env: Mapping[str, str]) -> Launch:
    size = int(env["WORLD_SIZE"])
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
    if size > 1 and missing:
        raise UserError(
            f"WORLD_SIZE says that {size} processes were started, and {' and '.join(missing)} is missing, that is,"
            " where they meet.",
            "Start them with torchrun or srun, or set it.",
        )
    return Launch(
        int(env["RANK"]),
        size,
        int(env.get("LOCAL_RANK", "0")),
        int(env.get("LOCAL_WORLD_SIZE", "1")),
        env.get("MASTER_ADDR", ""),
        int(env.get("MASTER_PORT", "0")),
        "torchrun",
        env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _slurm(env: Mapping[str, str]) -> Launch:
    size = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1")
    if size == 1:
        return Launch()
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or ""
    address = env.get("MASTER_ADDR") or first_host(hosts)
    if not address:
        raise UserError(
            f"Slurm started {size} tasks, and neither SLURM_JOB_NODELIST nor MASTER_ADDR says where they can meet.",
            "Set MASTER_ADDR to the first host's name.",
        )
    job, step = (int(env.get(name) or "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = int(env.get("MASTER_PORT") or FIRST_PORT + (job * 31 + step) % PORTS)
    rank = int(env["SLURM_PROCID"])
    local = int(env.get("SLURM_LOCALID", "0"))
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or ""
    return Launch(rank, size, local, _tasks_here(tasks, int(env.get("SLURM_NODEID", "0"))), address, port, "Slurm")


def cores() -> int:
    """Cores that this process may use: all of the machine's, or those that its job was given."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def own_cores() -> int:
    """This process's share of them, where several train on one machine."""
    own, launch = cores(), find()
    # Slurm may have given each task cores of its own: together they are no more than what the job has on this host.
    allotted = int(os.environ.get("SLURM_CPUS_ON_NODE") or 0) if launch.by == "Slurm" else 0
    return own if own * launch.local_size <= allotted else max(1, own // launch.local_size)


def first_host(hosts: str) -> str:
    """The first name in a list of Slurm's: "gpu[07-09,12],old1" gives "gpu07", "a[1-2]b[3,4]" gives "a1b3"."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", hosts.strip())
    assert first is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _tasks_here(tasks: str, node: int) -> int:
    """How many tasks Slurm's "4(x2),3" puts on a node: 4 on nodes 0 and 1, 3 on node 2. 1 where it does not say."""
    for part in filter(None, tasks.split(",")):
        count, _, times = part.partition("(x")
        node -= int(times.rstrip(")") or 1)
        if node < 0:
            return int(count)
    return 1
