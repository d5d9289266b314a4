"""`stmae doctor`: what this machine has, measured where that matters, and what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av
import torch
from rich.console import Console
from rich.text import Text

from stmae.data.synthetic import write_videos
from stmae.engine.launch import Launch, cores, find
from stmae.errors import Problems, UserError
from stmae.tasks.doctor_options import DoctorOptions
from stmae.tasks.task import task

# The decoders that can read a format; for AV1 FFmpeg's own one works with special hardware only.
DECODERS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),
    "mpeg4": ("mpeg4",),
    "mjpeg": ("mjpeg",),
}
GIB = 2**30


@dataclass
class Report:
    """What was found: rows (section, what, value), what works badly, and what does not work at all."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    advice: list[tuple[str, str]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def add(self, section: str, what: str, value: object) -> None:
        self.rows.append((section, what, str(value)))


@task(DoctorOptions)
def doctor(options: DoctorOptions) -> Report:
    """Returns:
        A `Report`, which is also printed.

    Raises:
        UserError: something that every run needs does not work here; says what, and how to get it.
    """
    report = Report()
    for look in (_versions, _devices, _processor, _videos, _system, _cluster):
        look(report)
    _show(report)
    problems = Problems()
    for problem, cure in report.problems:
        problems.add(problem, cure)
    problems.raise_any()
    return report


def _versions(report: Report) -> None:
    report.add("versions", "stmae", version("stmae"))
    report.add("versions", "python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name in ("torch", "av", "numpy", "safetensors", "pyarrow", "tensorboard"):
        try:
            report.add("versions", name, version(name))
        except PackageNotFoundError:
            report.problems.append((f"{name} is not installed.", f"Run `pip install {name}`."))
    libraries = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libavformat")}
    report.add("versions", "FFmpeg", ", ".join(f"{name} {number}" for name, number in libraries.items()))


def _devices(report: Report) -> None:
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        speed = _speeds(torch.device("cuda", index))
        report.add("devices", f"cuda:{index}", f"{about.name}, {about.total_memory / GIB:.0f} GiB; {speed}")
    if torch.backends.mps.is_available():
        report.add("devices", "mps", f"Apple GPU; {_speeds(torch.device('mps'))}")
    if not torch.cuda.is_available() and Path("/proc/driver/nvidia/version").exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        report.advice.append(
            (
                f"There is an NVIDIA driver, but PyTorch {torch.__version__} ({built}) sees no GPU.",
                "Install the PyTorch that goes with the driver: https://pytorch.org/get-started",
            )
        )


def _processor(report: Report) -> None:
    here = torch.device("cpu")
    capability = torch.backends.cpu.get_cpu_capability()
    about = f"{cores()} cores, {capability}, {torch.get_num_threads()} threads"
    report.add("devices", "cpu", f"{about}; {_speeds(here)}")


def _speeds(device: torch.device) -> str:
    """How fast matrices multiply here, and so whether bf16 is worth it."""
    fp32, bf16 = (_matmul_gflops(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    verdict = "bf16 is faster" if bf16 > 1.2 * fp32 else "bf16 is no faster"
    return f"512 x 512 matmul {fp32:,.0f} GFLOP/s in fp32, {bf16:,.0f} in bf16 ({verdict})"


def _matmul_gflops(device: torch.device, dtype: torch.dtype, size: int = 512) -> float:
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    rounds = 1 if device.type == "cpu" else 50
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(rounds):
            product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 * rounds / best / 1e9


def _videos(report: Report) -> None:
    missing = [name for name, decoders in DECODERS.items() if not any(map(_opens, decoders))]
    report.add("videos", "decoders", " ".join(name for name in DECODERS if name not in missing))
    if missing:
        cure = "Install the one that brings FFmpeg along: `pip install --force-reinstall --only-binary :all: av`."
        report.problems.append((f"this PyAV cannot decode {', '.join(missing)}.", cure))
    try:
        report.add("videos", "sample video", f"written and read, {_round_trip()} frames")
    except Exception as error:  # whatever goes wrong here is what the person wants to hear
        report.add("videos", "sample video", "failed")
        cure = "Reinstall PyAV: `pip install --force-reinstall av`."
        report.problems.append((f"a sample video could not be written and read: {error!r}.", cure))


def _opens(codec: str) -> bool:
    try:
        av.codec.Codec(codec, "r")
    except ValueError:  # UnknownCodecError among them
        return False
    return True


def _round_trip() -> int:
    """Writes a short synthetic video, reads it back and counts its frames."""
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_videos(folder, count=1, seconds=(0.5, 0.5))
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))


def _system(report: Report) -> None:
    free = shutil.disk_usage(".").free
    report.add("system", "free disk here", f"{free / GIB:.1f} GiB")
    if free < 2 * GIB:
        report.advice.append((f"Only {free / GIB:.1f} GiB are free here.", "Checkpoints need room: use another --out."))
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm")
        report.add("system", "/dev/shm", f"{shared.total / GIB:.1f} GiB, {shared.free / GIB:.1f} free")
        if shared.free < GIB / 2:
            report.advice.append(
                (
                    f"/dev/shm has {shared.free / 2**20:.0f} MiB free; GPUs of one host exchange gradients through it.",
                    "In a container that trains on several, start it with `--shm-size=8g`.",
                )
            )
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        report.add("system", "open files", f"{soft} at once (up to {hard})")
        if soft < 1024:
            report.advice.append((f"Only {soft} files may be open at once.", "Run `ulimit -n 4096` before."))


def _cluster(report: Report) -> None:
    """What several processes need: their places, a way to talk, and a network that leads to other hosts."""
    launch = Launch()
    try:
        launch = find()
        place = f"rank {launch.rank} of {launch.size}, by {launch.by}" if launch.size > 1 else "one process"
        report.add("cluster", "this process", place)
    except UserError as error:
        report.advice += error.problems
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks.isdigit() and int(tasks) > 1 and "SLURM_STEP_ID" not in os.environ:
        said = f"Slurm gave this job {tasks} tasks, and this process was not started by srun: it would train alone."
        report.advice.append((said, "Put srun before the command."))
    if torch.distributed.is_available():
        names = [name for name in ("gloo", "nccl") if torch.distributed.is_backend_available(name)]
        report.add("cluster", "backends", ", ".join(names))
        if torch.cuda.is_available() and "nccl" not in names:
            report.advice.append(("This PyTorch has no NCCL, over which GPUs talk.", "Train on a single GPU."))
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"] if hasattr(socket, "if_nameindex") else []
    report.add("cluster", "interfaces", " ".join(interfaces) or "none but lo")
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        _interface(variable, interfaces, report)
    _own_address(report, max(launch.hosts, int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))))


def _interface(variable: str, interfaces: list[str], report: Report) -> None:
    """NCCL takes a list of beginnings, = before whole names, ^ before those to avoid; gloo a list of whole names."""
    asked = os.environ.get(variable)
    if not asked:
        return
    report.add("cluster", variable, asked)
    whole = variable.startswith("GLOO") or asked.startswith("=")
    names = asked.lstrip("=").split(",")
    there = ["lo", *interfaces]
    missing = [n for n in names if not any(i == n if whole else i.startswith(n) for i in there)]
    if missing and not asked.startswith("^"):
        report.advice.append((f"{variable} names {', '.join(missing)}, which this host lacks.", "See `ip link`."))


def _own_address(report: Report, hosts: int) -> None:
    """gloo, and torchrun, offer other hosts the address that this host's name stands for."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "nothing"
    inward = (address == "nothing" or address.startswith("127.")) and not os.environ.get("GLOO_SOCKET_IFNAME")
    note = " (which other hosts cannot reach; for several hosts set GLOO_SOCKET_IFNAME)" if inward else ""
    report.add("cluster", "host name", f"{name}, which is {address}{note}")
    if inward and hosts > 1:
        cure = "Set GLOO_SOCKET_IFNAME to the interface between the hosts, and give torchrun --local-addr."
        report.advice.append((f"{name} stands for {address}, which leads the other hosts nowhere.", cure))


def _show(report: Report) -> None:
    console = Console(highlight=False)
    section = ""
    for where, what, value in report.rows:
        if where != section:
            console.print(f"[bold]{where}[/bold]")
            section = where
        console.print(Text.assemble(f"  {what:<16}", (value, "cyan")), soft_wrap=True)
    console.print()
    for what, cure in report.advice:
        console.print(Text.assemble(("advice: ", "yellow"), f"{what} {cure}"), soft_wrap=True)
    if not report.advice and not report.problems:
        console.print("Nothing is missing.", style="green")
