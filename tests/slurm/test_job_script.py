"""slurm/job.sh by itself, where SLURM's commands are made up: what runs again, and with what it goes on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.config import load_config
from tests.slurm.training import CHECKOUT

JOB_SCRIPT = CHECKOUT / "slurm" / "job.sh"


class MadeUpSlurm:
    """Commands of a made-up SLURM, and a job's folder. state: what squeue says of the job."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.run.mkdir()
        self._commands = folder / "bin"
        self._commands.mkdir()
        self.requeued = folder / "requeued"
        self._submitted_from = folder / "checkout"
        (self._submitted_from / "slurm").mkdir(parents=True)
        (self._submitted_from / "slurm" / "job.sh").write_bytes(JOB_SCRIPT.read_bytes())
        self.write_command("squeue", 'case "$*" in *%T*) echo "$STATE" ;; esac')
        self.write_command("scontrol", f'echo "$@" >>{self.requeued}')

    @property
    def known(self) -> str:
        """The line by which the script knows the job and its run."""
        return f"RUN={self.run} SHARDS={self.run}/shards; name_job; know_run"

    def write_command(self, name: str, line: str) -> None:
        """Write a command that the script finds before any other."""
        (self._commands / name).write_text(f"#!/bin/bash\n{line}\n")
        (self._commands / name).chmod(0o755)

    def bash(self, line: str, *, state: str = "RUNNING", restarts: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a line in a shell that has the script's functions."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_JOB_NODELIST": "n1", "STATE": state}
        environment |= {"SLURM_SUBMIT_DIR": str(self._submitted_from), "PYTHONPATH": str(CHECKOUT)}
        environment |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        environment["PATH"] = f"{self._commands}:{Path(sys.executable).parent}:{environment['PATH']}"
        command = ["bash", "-c", f"source {JOB_SCRIPT}; {line}"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def finish(self, code: int, *, state: str = "RUNNING", restarts: int = 0) -> bool:
        """End the job with an exit code, and return whether it is queued again."""
        self.requeued.unlink(missing_ok=True)
        ended = self.bash(f"{self.known}; finish {code}", state=state, restarts=restarts)
        assert (ended.returncode, ended.stderr) == (code, "")
        return self.requeued.exists() and self.requeued.read_text() == "requeue 7\n"


@pytest.fixture
def slurm(tmp_path: Path) -> MadeUpSlurm:
    return MadeUpSlurm(tmp_path)


@pytest.mark.parametrize("code", [75, 138, 140, 143])
def test_a_job_that_was_told_to_stop_is_queued_again(slurm: MadeUpSlurm, code: int) -> None:
    assert [slurm.finish(code, restarts=number) for number in range(3)] == [True] * 3


def test_a_job_that_never_takes_a_step_is_not_queued_again_for_ever(slurm: MadeUpSlurm) -> None:
    assert [slurm.finish(75, restarts=number) for number in range(11)] == [True] * 10 + [False]


@pytest.mark.parametrize(("told", "code"), [(75, 1), (143, 2), (137, 1)])
def test_a_failure_counts_and_not_the_end_of_the_tasks_that_were_stopped_for_it(
    slurm: MadeUpSlurm, told: int, code: int
) -> None:
    """When a task fails, srun tells the others to stop, and then their exit code, as it is the highest."""
    fails = f"import launch.failure as failure; failure.end_at_once({code})"
    ended = slurm.bash(f'{slurm.known}; python -c "{fails}"; finish {told}', restarts=1)
    assert ended.returncode == code
    ended = slurm.bash(f'{slurm.known}; python -c "{fails}"; finish {told}', restarts=2)
    assert "failed again, and no further than before" in ended.stdout
    assert slurm.finish(75, restarts=3), "a later stop is one"


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", "REQUEUE_HOLD"])
def test_a_job_that_was_cancelled_or_is_queued_again_already_is_left_alone(slurm: MadeUpSlurm, state: str) -> None:
    assert not slurm.finish(75, state=state)


def test_a_failure_is_worth_another_start_until_two_fail_at_the_same_place(slurm: MadeUpSlurm) -> None:
    assert slurm.finish(1)
    newest = slurm.run / "stages" / "one" / "checkpoints" / "LATEST"
    newest.parent.mkdir(parents=True)
    newest.write_text("step-00000010\n")
    assert slurm.finish(1, restarts=1)
    assert not slurm.finish(137, restarts=2)


def test_an_encode_that_fails_goes_on_as_long_as_there_are_more_shards(slurm: MadeUpSlurm) -> None:
    for number in range(3):
        assert slurm.finish(1, restarts=number)
        (slurm.run / "shards" / "64" / "train").mkdir(parents=True, exist_ok=True)
        (slurm.run / "shards" / "64" / "train" / f"{number}.tar").touch()
        (slurm.run / "shards" / "64" / "train" / f".{number + 1}.tar.partial").touch()
    assert slurm.finish(1, restarts=3)
    assert not slurm.finish(1, restarts=4)


def test_an_end_is_counted_once_though_scontrol_requeue_sends_term(slurm: MadeUpSlurm) -> None:
    slurm.write_command("scontrol", f'echo "$@" >>{slurm.requeued}; kill -TERM $PPID')
    ended = slurm.bash(f"{slurm.known}; hear_between_steps; finish 75")
    assert (ended.returncode, ended.stderr) == (75, "")
    assert slurm.requeued.read_text() == "requeue 7\n"


def test_the_tasks_get_the_shells_environment_whatever_sbatch_was_told(slurm: MadeUpSlurm) -> None:
    assert slurm.bash("export SLURM_EXPORT_ENV=NONE; name_job; printenv SLURM_EXPORT_ENV").stdout == ""


def test_the_cores_of_the_job_from_which_this_one_was_submitted_are_not_taken_for_its_own(slurm: MadeUpSlurm) -> None:
    bound = "SLURM_CPU_BIND=mask_cpu:0x1 SLURM_CPU_BIND_TYPE=mask_cpu: SLURM_MEM_BIND=local"
    ended = slurm.bash(f"export {bound}; trap 'echo left: $(printenv | grep BIND)' EXIT; begin none.yaml")
    assert ended.stdout.endswith("left:\n")


def test_what_cannot_be_counted_is_not_queued_again(slurm: MadeUpSlurm) -> None:
    """On a full disk, say: a folder stands in the way."""
    ended = slurm.bash(f"{slurm.known}; mkdir $JOB_FOLDER/failed; finish 1", restarts=1)
    assert ended.returncode == 1
    assert "queued again, to go on" not in ended.stdout


def test_before_the_run_is_known_every_start_counts(slurm: MadeUpSlurm) -> None:
    for code, most in ((75, 10), (1, 1)):
        again = [slurm.bash(f"name_job; finish {code}", restarts=number).stdout for number in (most - 1, most)]
        assert ["queued again, to go on" in told for told in again] == [True, False]


def test_a_mistake_ends_a_job_unless_it_went_well_before(slurm: MadeUpSlurm) -> None:
    """With fewer nodes a batch may not be shared, and a lock may be held by a rank that was cut off."""
    assert not slurm.finish(2)
    assert slurm.finish(2, restarts=1)
    assert not slurm.finish(2, restarts=2)


def test_a_signal_that_comes_while_databases_are_scanned_has_the_job_queued_again(slurm: MadeUpSlurm) -> None:
    """SLURM sends it to the steps of a job alone, so scanning is one."""
    slurm.write_command("srun", 'case "$*" in *"sonoshard prepare mine.yaml"*) kill -USR1 $$ ;; esac')
    slurm.write_command("python", "true")
    ended = slurm.bash(
        f"{slurm.known}; CONFIG=mine.yaml OVERRIDES=() SLURM_JOB_NUM_NODES=2 SLURM_CPUS_ON_NODE=4; prepare_and_encode"
    )
    assert ended.returncode == 138
    assert "ended with 138; queued again, to go on" in ended.stdout


@pytest.mark.parametrize("name", ["USR1", "USR2", "TERM"])
def test_a_signal_that_comes_between_two_steps_has_the_job_queued_again(slurm: MadeUpSlurm, name: str) -> None:
    slurm.write_command("srun", "true")
    ended = slurm.bash(f"{slurm.known}; step sonoshard prepare; kill -{name} $$; echo goes on")
    assert ended.returncode == 75
    assert "ended with 75; queued again, to go on" in ended.stdout
    assert "goes on" not in ended.stdout.splitlines()


def test_a_job_that_is_queued_again_keeps_its_run_and_its_configuration(slurm: MadeUpSlurm, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    begin = f"begin {mine} zero.stage=1; echo the configuration is $CONFIG"
    text = f"extends: {CHECKOUT}/configs/demo.yaml\nrun: {slurm.run}\noptimizer: {{lr: %s}}\n"
    mine.write_text(text % 2e-5)
    assert slurm.bash(begin).returncode == 0
    mine.write_text((text % 1.0).replace(f"{slurm.run}", f"{tmp_path}/another"))
    assert slurm.bash(begin, restarts=1).returncode == 0
    log = (slurm.run / "slurm-7.log").read_text()
    assert "start 2" in log
    (kept,) = set(re.findall(r"^the configuration is (.*)$", log, re.MULTILINE))
    config = load_config(Path(kept))
    assert (config.optimizer.lr, config.zero.stage, config.run) == (2e-5, 1, slurm.run)
    # A job of its own does as the file says by now.
    assert slurm.bash(begin.replace("begin", "SLURM_JOB_ID=8; begin")).returncode == 0
    assert (tmp_path / "another" / "slurm-8.log").exists()
    # So does another cluster's job of this number.
    mine.write_text((text % 1.0).replace(f"{slurm.run}", f"{tmp_path}/elsewhere"))
    assert slurm.bash(f"SLURM_CLUSTER_NAME=other; {begin}").returncode == 0
    assert (tmp_path / "elsewhere" / "slurm-7.log").exists()
    assert slurm.bash(begin, restarts=2).returncode == 0
    assert "start 3" in (slurm.run / "slurm-7.log").read_text()
    # A node on which nothing is installed is an accident to a job that ran before.
    slurm.write_command("sonoshard", "false")
    ended = slurm.bash(
        "PATH=$(dirname $(command -v squeue)):/usr/bin:/bin; rm $(command -v sonoshard); " + begin, restarts=3
    )
    assert "sonoshard is not installed" in ended.stderr
    assert "ended with 2; queued again, to go on" in ended.stdout
