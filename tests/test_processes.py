"""Jobs in processes: every result comes, and what dies or hangs is named."""

import os
import signal
import time
from pathlib import Path

import pytest

from stmae.data.processes import Lost, each


def work(job: str) -> str:
    if job == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "leave":
        os._exit(3)
    if job == "hang":
        time.sleep(60)
    if job == "mistake":
        raise KeyError(job)
    return job.upper()


@pytest.mark.slow
def test_a_job_that_kills_or_hangs_its_worker_is_named_and_the_others_come() -> None:
    jobs = ["a", "die", "b", "hang", "leave", "c", "d"]
    results = dict(each(work, jobs, workers=2, limit=2.0))
    assert sorted(results) == list(range(len(jobs)))
    assert {number: results[number] for number in (0, 2, 5, 6)} == {0: "A", 2: "B", 5: "C", 6: "D"}
    died, hung, left = results[1], results[3], results[4]
    assert isinstance(died, Lost)
    assert isinstance(hung, Lost)
    assert isinstance(left, Lost)
    assert "SIGSEGV" in died.reason
    assert "more than 2 s" in hung.reason
    assert "exit status 3" in left.reason


def test_our_own_mistakes_are_raised() -> None:
    with pytest.raises(KeyError, match="mistake"):
        list(each(work, ["mistake"], workers=1, limit=30.0))


@pytest.mark.slow
def test_no_process_is_left_behind_and_the_callers_script_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # without `if __name__ == "__main__":`
    script.write_text(
        "print('script')\n"
        "from operator import neg\n"
        "from stmae.data.processes import each\n"
        "print(sorted(each(neg, [1, 2, 3], 2, 30.0)))\n"
        "import multiprocessing\n"
        "print(multiprocessing.active_children())\n"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["script", "[(0, -1), (1, -2), (2, -3)]", "[]"]
