"""Where a task of srun stands among the others."""

import pytest

from launch.srun import FIRST_PORT, NUM_PORTS, first_host, is_task, variables_of_task

# As Slurm 22.05 gives it to the third of four tasks, two on each of two nodes.
THIRD = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def test_a_task_is_a_rank() -> None:
    found = variables_of_task(THIRD)
    port = int(found.pop("MASTER_PORT"))
    assert found == {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "gpu07"}
    assert FIRST_PORT <= port < FIRST_PORT + NUM_PORTS


@pytest.mark.parametrize(
    "other", [{"SLURM_JOB_ID": "4712"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}], ids=str
)
def test_other_jobs_steps_and_restarts_have_other_ports(other: dict[str, str]) -> None:
    assert variables_of_task(THIRD)["MASTER_PORT"] != variables_of_task(THIRD | other)["MASTER_PORT"]


def test_all_tasks_of_a_step_have_the_same_port() -> None:
    last = THIRD | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert variables_of_task(THIRD)["MASTER_PORT"] == variables_of_task(last)["MASTER_PORT"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-006,9]", "gpu003"),
        ("gpu[9,11],cpu1", "gpu9"),
        ("rack[0-1]node[10-12]", "rack0node10"),
        ("a1,b[2-3]", "a1"),
        ("dgx-[01-04]-ib", "dgx-01-ib"),
        ("node7.cluster.example", "node7.cluster.example"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_batch_script_is_no_task() -> None:
    assert is_task(THIRD)
    assert not is_task({"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"})
