"""SLURM: its commands, partitions, settings that end a job early, and the job that this is."""

import os
import re
import shutil
import time
from collections.abc import Iterator

from tools.doctor.disks import CHECKPOINT_BYTES
from tools.doctor.finding import Finding, fine, note
from tools.doctor.gpus import torch_facts
from tools.doctor.subprocesses import answer_of

COMMANDS = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
SHORT_S = 600
NUM_PARTITIONS = 6  # to show


def check_commands() -> Iterator[Finding]:
    """Say whether SLURM is here, and whether its controller answers."""
    missing = [name for name in COMMANDS if not shutil.which(name)]
    if len(missing) == len(COMMANDS):
        yield fine("SLURM", "not here; runs start without it by `--nproc`")
        return
    if missing:
        yield note("SLURM", f"{', '.join(missing)} not in PATH", "load the cluster's module, or mend PATH")
        return
    version = answer_of(["sinfo", "--version"]).stdout.strip().rpartition(" ")[2]
    answer = answer_of(["scontrol", "show", "config"])
    if answer.problem is not None:
        found = f"its commands are here, but no controller answers: {answer.problem}"
        yield note("SLURM", found, "on a login node ask who runs the cluster; elsewhere runs start by `--nproc`")
        return
    settings = _settings(answer.stdout)
    version = version or settings.get("SLURM_VERSION", "of unknown version")
    yield fine("SLURM", f"{version}, cluster {settings.get('ClusterName', 'without a name')}")


def check_partitions() -> Iterator[Finding]:
    """Say which partitions there are, with time limits and GPUs."""
    if not shutil.which("sinfo"):
        return
    answer = answer_of(["sinfo", "--noheader", "--format=%P|%l|%D|%G|%a"])
    if answer.problem is not None:
        return  # said above
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 4]
    if not rows:
        yield note("partitions", "none that you may see", "ask who runs the cluster for an account")
    for name, limit, nodes, gres, state in rows[:NUM_PARTITIONS]:
        gpus = gres if "gpu" in gres else "no GPUs"
        plural = "" if nodes == "1" else "s"
        found = f"{name.rstrip('*')}: {nodes} node{plural}, {gpus}, {limit}{' (default)' if name.endswith('*') else ''}"
        if state == "up":
            yield fine("partition", found)
        else:
            yield note("partition", f"{found}, {state}", "choose another one: jobs wait there for ever")
    if len(rows) > NUM_PARTITIONS:
        yield fine("partition", f"and {len(rows) - NUM_PARTITIONS} more: sinfo")
    facts = torch_facts()
    if any("gpu" in row[3] for row in rows) and "problem" not in facts and facts["cuda"] is None:
        found = f"nodes have GPUs, but torch {facts['version']} here was built for the CPU"
        yield note("partition", found, "jobs in this environment train on the CPU: install a torch built for CUDA")


def check_preemption(write_speed: float | None) -> Iterator[Finding]:
    """Say how a job is told to stop, and whether it has the time to save. write_speed: of the run's disk, bytes/s."""
    if not shutil.which("scontrol"):
        return
    answer = answer_of(["scontrol", "show", "config"])
    if answer.problem is not None:
        return  # said above
    settings = _settings(answer.stdout)
    mode = settings.get("PreemptMode", "OFF")
    if settings.get("JobRequeue") == "0":
        yield note("requeue", "JobRequeue=0: jobs are not requeued by default", "sbatch --requeue")
    else:
        yield fine("requeue", "jobs are requeued unless they ask not to be")
    if "CANCEL" in mode:
        advice = "submit again by yourself; a run goes on where it stopped"
        yield note("preemption", f"PreemptMode={mode}: a pre-empted job does not come back", advice)
    elif "SUSPEND" in mode:
        yield note("preemption", f"PreemptMode={mode}: GPU memory stays taken", "prefer a partition that requeues")
    else:
        yield fine("preemption", f"PreemptMode={mode}")
    yield from _kill_wait(settings.get("KillWait", ""), write_speed)


def _kill_wait(value: str, write_speed: float | None) -> Iterator[Finding]:
    match = re.match(r"\d+", value)
    if not match:
        return
    kill_wait_s = int(match.group())
    found = f"{kill_wait_s} s from TERM to the kill"
    save_s = None if write_speed is None else CHECKPOINT_BYTES / write_speed
    if save_s is None:
        yield fine("KillWait", found)
    elif save_s > kill_wait_s:
        found += f", but a Stable Diffusion checkpoint takes {save_s:.0f} s on the run's disk"
        yield note("KillWait", found, f"sbatch --signal=USR1@{max(120, round(2 * save_s, -1)):.0f}")
    else:
        yield fine("KillWait", f"{found}; a Stable Diffusion checkpoint takes {save_s:.0f} s on the run's disk")


def check_job() -> Iterator[Finding]:
    """Say what this job was given, and what in it does not fit together."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        yield fine("job", "none: this is a login node, or a machine of your own")
        return
    nodes, tasks = os.environ.get("SLURM_JOB_NUM_NODES", "1"), os.environ.get("SLURM_NTASKS", "1")
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE", "?")
    memory = os.environ.get("SLURM_MEM_PER_NODE")
    found = f"{job}: nodes {nodes}, tasks {tasks}, CPUs a task {cpus}"
    yield fine("job", found + (f", {int(memory) / 1024:.0f} GiB a node" if memory and memory.isdecimal() else ""))
    yield _threads(cpus)
    yield from _time_limit()


def _threads(cpus: str) -> Finding:
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None or not threads.isdecimal() or not cpus.isdecimal():
        return fine(
            "threads", f"OMP_NUM_THREADS={threads or 'not set'}; {len(os.sched_getaffinity(0))} CPUs are usable"
        )
    if int(threads) > int(cpus):
        advice = f"export OMP_NUM_THREADS={cpus}"
        return note("threads", f"OMP_NUM_THREADS={threads}, more than the {cpus} CPUs of a task", advice)
    return fine("threads", f"OMP_NUM_THREADS={threads} of {cpus} CPUs")


def _time_limit() -> Iterator[Finding]:
    start, end = os.environ.get("SLURM_JOB_START_TIME", ""), os.environ.get("SLURM_JOB_END_TIME", "")
    if not start.isdecimal() or not end.isdecimal():
        return
    limit_s, left_s = int(end) - int(start), int(end) - time.time()
    found = f"{limit_s / 60:.0f} minutes, {max(0.0, left_s) / 60:.0f} left"
    signal = re.search(r"@(\d+)", os.environ.get("SBATCH_SIGNAL", ""))
    if signal and int(signal.group(1)) >= limit_s:
        advice = "a longer --time, or a smaller number in --signal: else it stops as soon as it starts"
        yield note("time limit", f"{found}; the signal comes {signal.group(1)} s before its end", advice)
    elif limit_s < SHORT_S:
        yield note("time limit", found, "starting and saving take minutes: ask for more by --time")
    else:
        yield fine("time limit", found)


def _settings(text: str) -> dict[str, str]:
    """Return the `KEY = VALUE` lines of `scontrol show config`."""
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}
