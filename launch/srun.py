"""This process's place among the tasks that srun started, as torchrun would tell it."""

import re
from collections.abc import Mapping

from distributed.rank import rank_variables

# Below what Linux gives to outgoing connections (net.ipv4.ip_local_port_range: from 32768 on).
FIRST_PORT, NUM_PORTS = 20_000, 12_000


def is_task(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this process."""
    # Not SLURM_NTASKS, which a batch script has too that runs as one process.
    return "SLURM_STEP_NUM_TASKS" in environment


def variables_of_task(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for a task of a step.

    The first rank's node is the first of the step's list. The port follows from job, step and restart, so that jobs
    that share a node differ, and a job that begins again does not wait for its old port.
    Source: srun(1), "Output environment variables".
    """
    job, step, restart = (
        int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    return rank_variables(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_STEP_NUM_TASKS"]),
        first_host(environment["SLURM_STEP_NODELIST"]),
        FIRST_PORT + (64 * job + 8 * restart + step) % NUM_PORTS,
        local_index=int(environment["SLURM_LOCALID"]),
    )


def first_host(nodes: str) -> str:
    """Return the first name of a list of hosts as Slurm writes it, such as gpu[003-006,9] or a1,b[2-3]."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ValueError(f"{nodes!r} is no list of hosts")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())
