"""The test cluster is one: nodes that share nothing but files, and a scheduler that takes jobs away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.machine import command_lines

pytestmark = pytest.mark.slurm

# Rank 0 listens until rank 1 reached it by its node's name and then failed to by "localhost".
LOCALHOST = """\
import os, socket, time
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server(("", 29500)) as server:
        connection, _ = server.accept()
        connection.recv(1)
else:
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = socket.create_connection(("n1", 29500))
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
    try:
        socket.create_connection(("localhost", 29500))
    except ConnectionRefusedError:
        print("localhost is another machine")
    connection.sendall(b"x")
"""

# Stands for a rank that saves when it is told to end: it exits with 75, and the script puts the job back.
RANK = """\
import signal, sys, time
def save(number, frame):
    print("rank got", signal.Signals(number).name, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("rank runs", flush=True)
while True:
    time.sleep(0.1)
"""
REQUEUING = """\
#!/bin/bash
if [ -n "$SLURM_RESTART_COUNT" ]; then echo "restart $SLURM_RESTART_COUNT"; exit 0; fi
srun python3 rank.py
[ $? = 75 ] && scontrol requeue $SLURM_JOB_ID
sleep infinity
"""

# A process that starts a cluster with a job in it, tells where things are, and waits to be killed.
OWNER = """\
from tests.slurm.cluster import Cluster
with Cluster() as cluster:
    job = cluster.sbatch("--nodes=2", "--wrap=srun sleep infinity")
    cluster.wait_until(lambda: any("sleep" in line for line in cluster.job_pids().values()), "the job")
    print(cluster.folder, cluster.interface, *cluster.pid_namespaces, flush=True)
    input()
"""


def interfaces() -> str:
    return subprocess.run(["ip", "-oneline", "link"], check=True, capture_output=True, text=True).stdout


def num_tasks(cluster: Cluster) -> int:
    """Return how many tasks sleep; their command is the path that srun found."""
    return sum(line.endswith("/sleep infinity") for line in cluster.job_pids().values())


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_each_node_has_its_name(cluster: Cluster) -> None:
    assert sorted(cluster.run("srun", "--nodes=2", "hostname").split()) == ["n1", "n2"]


def test_localhost_is_not_the_other_node(cluster: Cluster) -> None:
    spoken = cluster.run("srun", "--nodes=2", "--ntasks=2", sys.executable, "-c", LOCALHOST)
    assert spoken.strip() == "localhost is another machine"


def test_a_job_sees_its_gpus(cluster: Cluster) -> None:
    both = cluster.run("srun", "--nodes=2", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES")
    assert both.split() == ["0,1", "0,1"]
    one = cluster.run("srun", "--gres=gpu:1", "printenv", "CUDA_VISIBLE_DEVICES")
    assert one.split() == ["0"]


def test_exported_variables_reach_a_batch_job(cluster: Cluster, tmp_path: Path) -> None:
    arguments = ("--output=out.txt", "--wrap=srun printenv WHAT_FOR")
    job = cluster.sbatch(*arguments, env={"WHAT_FOR": "a drill, say"}, cwd=tmp_path)
    cluster.wait_for_state(job, "COMPLETED")
    assert (tmp_path / "out.txt").read_text() == "a drill, say\n"
    fields = cluster.job(job)
    assert (fields["WorkDir"], fields["ExitCode"], fields["NumNodes"]) == (str(tmp_path), "0:0", "1")


def test_an_urgent_job_makes_one_save_and_wait_for_its_turn(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "job.sh").write_text(REQUEUING)
    output = tmp_path / "out.txt"
    arguments = ("--requeue", "--nodes=2", "--exclusive", f"--output={output}", "--open-mode=append", "job.sh")
    job = cluster.sbatch(*arguments, cwd=tmp_path)
    cluster.wait_until(lambda: read(output).count("rank runs") == 2, "two ranks")

    urgent = cluster.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep infinity")
    cluster.wait_for_state(urgent, "RUNNING")
    assert read(output).count("rank got SIGTERM") == 2
    assert cluster.state(job) == "PENDING"
    assert cluster.job(job)["Restarts"] == "1"

    cluster.run("scancel", str(urgent))
    cluster.wait_for_state(job, "COMPLETED")
    assert read(output).endswith("restart 1\n")


def test_a_job_of_a_dead_node_runs_again_when_it_is_back(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    again = '--wrap=echo restarts: $SLURM_RESTART_COUNT; [ -n "$SLURM_RESTART_COUNT" ] || srun sleep infinity'
    job = cluster.sbatch("--requeue", "--nodes=2", f"--output={output}", again)
    # The tasks, not srun: a launch that fails half-way is a failed job, and is not put back.
    cluster.wait_until(lambda: num_tasks(cluster) == 2, "a task on each node")
    cluster.kill_node("n2")
    cluster.wait_for_state(job, "PENDING")
    cluster.start_node("n2")
    cluster.wait_for_state(job, "COMPLETED")
    assert read(output) == "restarts: 1\n"


def test_a_pulled_cable_cuts_a_node_off(cluster: Cluster) -> None:
    connect = ("srun", "--nodelist=n1", "timeout", "2", "bash", "-c", "echo > /dev/tcp/n2/6818 && echo connected")
    assert cluster.run(*connect) == "connected\n"
    cluster.pull_cable("n2")
    try:
        assert cluster.run(*connect, check=False) == ""
    finally:
        cluster.plug_cable("n2")
    assert cluster.run("srun", "--nodelist=n2", "hostname") == "n2\n"


def test_a_wait_that_is_too_long_says_for_what_and_shows_the_log(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)waited 0 s for the moon\n.*slurmctld\.log"):
        cluster.wait_until(lambda: False, "the moon", timeout_s=0)
    job = cluster.sbatch("--hold", "--wrap=true")
    with pytest.raises(RuntimeError, match=rf"job {job} is PENDING: waited 0 s for it to be RUNNING"):
        cluster.wait_for_state(job, "RUNNING", timeout_s=0)


def test_a_job_that_ended_otherwise_is_not_waited_for(cluster: Cluster) -> None:
    job = cluster.sbatch("--wrap=echo no data; exit 3")
    with pytest.raises(RuntimeError, match=rf"(?s)job {job} is FAILED: waited for it to be COMPLETED\n.*no data"):
        cluster.wait_for_state(job, "COMPLETED", timeout_s=3600)


def test_a_failed_command_says_what_slurm_said(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)scontrol show job 999999: exit 1\n.*Invalid job id"):
        cluster.run("scontrol", "show", "job", "999999")


def test_a_stopped_cluster_leaves_nothing(cluster: Cluster) -> None:
    # `cluster` runs beside it: two do not disturb each other.
    with Cluster(num_nodes=1) as other:
        other.sbatch("--wrap=sleep infinity")
        other.wait_until(lambda: any("sleep" in line for line in other.job_pids().values()), "the job")
        assert other.interface in interfaces()
    assert other.pids() == {}
    assert other.interface not in interfaces()
    assert not other.folder.exists()
    assert cluster.run("srun", "hostname") == "n1\n"


def test_a_cluster_dies_with_the_process_that_started_it(cluster: Cluster) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        folder, interface, *namespaces = owner.stdout.readline().split()
        assert len(command_lines(set(namespaces))) > 8
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    cluster.wait_until(lambda: not command_lines(set(namespaces)), "the end of its processes")
    cluster.wait_until(lambda: interface not in interfaces(), "the end of its network")
    assert not Path(folder).exists()
