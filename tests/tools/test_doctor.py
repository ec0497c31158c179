"""`sonoshard doctor` says of each thing that it is fine or what to do, on machines that are faked here."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from launch.own_packages import CHECKOUT, how_to_import_ours, packages_from_elsewhere, packages_of_others
from tests.tiny_random_model import write_tiny_random_model
from tools.doctor import base_models, disk_speed, disks, gpus, network, slurm, software
from tools.doctor.examination import _lines
from tools.doctor.finding import Finding, findings_of, fine, mend
from tools.doctor.subprocesses import answer_of

Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts shell scripts on a PATH that holds nothing else but the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_", "NCCL_", "GLOO_", "HF_", "CUDA_")) or name in ("DATA", "TMPDIR"):
            monkeypatch.delenv(name)


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def verdicts(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in findings}


# The whole command


GROUPS = ("Software", "GPUs and engine", "Between ranks", "Disks", "SLURM", "Base models, offline")


def doctor(*arguments: str, cwd: Path = CHECKOUT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )


@pytest.mark.slow
def test_this_machine_has_what_is_needed(tmp_path: Path) -> None:
    arguments = (str(CHECKOUT / "configs" / "demo.yaml"), f"run={tmp_path / 'run'}")
    groups = [*GROUPS, f"Configuration {' '.join(arguments)}"]
    result = doctor(*arguments, TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line in groups] == groups
    assert lines[-1] == "everything needed is here"
    # Commands and long paths are not broken.
    unbroken = (" hf download ", " sonoshard prepare ", str(tmp_path))
    assert all(len(line) <= 80 for line in lines if not any(text in line for text in unbroken))
    assert any(line.startswith("  bitsandbytes   fine: ") for line in lines)
    assert list(tmp_path.iterdir()) == [], "a look changes nothing"


@pytest.mark.parametrize("content", [None, "stages: [", "run: runs/x\nbananas: 1\n"])
def test_a_wrong_configuration_is_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    result = doctor(str(path))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("sonoshard: ")
    assert result.stderr.count("\n") == 1


def test_a_shadowing_package_is_named_before_anything_is_imported(tmp_path: Path) -> None:
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / "__init__.py").write_text("raise SystemExit('dask was imported')")
    result = doctor(cwd=tmp_path, PYTHONPATH=str(CHECKOUT))
    assert result.returncode == 1
    assert f"X `import distributed` opens {tmp_path / 'distributed'}, not {CHECKOUT / 'distributed'}" in result.stdout
    assert f"cd {CHECKOUT} first" in result.stdout
    assert "1 thing to mend" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_measurement_leaves_nothing(tmp_path: Path, number: int) -> None:
    script = (
        "import sys, time; from tools.doctor import disk_speed, probe\n"
        "import signal; [signal.signal(s, probe._stop) for s in (signal.SIGTERM, signal.SIGINT)]\n"
        "disk_speed.NUM_SMALL_FILES = 10**9; disk_speed.LIMIT_S = 60; disk_speed.LARGE_FILE_BYTES = 1 << 20\n"
        "print(flush=True); disk_speed.measure(sys.argv[1])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=CHECKOUT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not list(tmp_path.iterdir()):  # until it is at its small files
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert list(tmp_path.iterdir()) == []


# Checks that fail, hang or speak


def test_a_check_that_fails_or_hangs_is_a_line() -> None:
    never = Event()

    def fails() -> Iterator[Finding]:
        yield fine("a", "well so far")
        raise OSError("stale\nfile handle")

    def hangs() -> Iterator[Finding]:
        never.wait()
        yield fine("b", "too late")

    found = list(findings_of("disk", fails))
    assert [finding.verdict for finding in found] == ["fine", "note"]
    assert found[1].found == "this check failed: OSError: stale file handle"
    assert "did not end within 0.01 s" in only(findings_of("disk", hangs, limit_s=0.01)).found
    never.set()


def test_programs_that_fail_hang_or_are_missing(program: Program) -> None:
    program("fails", "echo first >&2; echo 'no such cluster' >&2; exit 3")
    program("hangs", "exec sleep 60")
    program("dies", "kill -11 $$")
    assert answer_of(["fails"]).problem == "no such cluster (exit code 3)"
    assert answer_of(["hangs"], timeout_s=0.1).problem == "no answer within 0.1 s"
    assert answer_of(["dies"]).problem == "it said nothing (signal 11)"
    assert "No such file" in str(answer_of(["absent"]).problem)


def test_a_command_to_copy_is_not_broken() -> None:
    command = "hf download " + "x" * 100 + " --include '*.json'"
    lines = _lines(mend("cache", "nothing", f"elsewhere run: {command}")).splitlines()
    assert lines[0] == "X cache          nothing"
    assert lines[1].strip() == "-> elsewhere run:"
    assert lines[2].strip() == command


# Software


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "CHECKOUT", tmp_path)
    version = importlib.metadata.version("numpy")
    for needed, tested, verdict in (
        ("numpy>=1.0", version, "fine"),
        ("numpy>=1.0", "1.0", "note"),
        ("numpy>=99", version, "mend"),
        ("nothing-of-this-name>=1", version, "mend"),
    ):
        (tmp_path / "setup.cfg").write_text(f"[options]\ninstall_requires =\n    {needed}\n")
        (tmp_path / "constraints.txt").write_text(f"# exact\nnumpy=={tested}\n")
        assert only(software.check_versions()).verdict == verdict


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(software.check_python()).verdict == "fine"
    monkeypatch.setattr(software, "OLDEST_PYTHON", (9, 0))
    assert only(software.check_python()).verdict == "mend"


def test_rivals_and_foreign_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages_from_elsewhere() == {}
    (tmp_path / "data.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert packages_of_others() == [tmp_path / "data.py"]
    assert only(software.check_imports()).verdict == "note"
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    assert only(software.check_origins()).verdict == "fine"
    monkeypatch.setattr(software, "LIBRARIES", ("torch",))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert str(tmp_path / "torch") in only(software.check_origins()).found


def test_what_mends_a_foreign_package() -> None:
    assert "pip uninstall" in how_to_import_ours("/env/lib/python3.11/site-packages/distributed")
    assert "PYTHONPATH" in how_to_import_ours("/home/me/data")
    assert "pip install" in how_to_import_ours(None)


def test_compiler_and_limits(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert only(software.check_compiler()).verdict == "note"
    program("g++", "")
    assert only(software.check_compiler()).verdict == "fine"
    for soft, verdict in ((256, "note"), (4096, "fine"), (-1, "fine")):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, 4096))
        assert verdicts(software.check_limits())["open files"] == verdict


# GPUs


GPU = {"name": "H100", "capability": [9, 0], "problem": None, "free_bytes": 79 * 2**30, "total_bytes": 80 * 2**30}
TORCH: dict[str, Any] = {
    "version": "2.13.0+cu126",
    "cuda": "12.6",
    "gpus": [],
    "warning": None,
    "nccl": "2.27",
    "has_nccl": True,
    "has_gloo": True,
}


@pytest.fixture
def torch_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)

    def set_facts(**changes: Any) -> None:
        facts = changes if "problem" in changes else TORCH | changes
        monkeypatch.setattr(gpus, "torch_facts", lambda: facts)
        monkeypatch.setattr(network, "torch_facts", lambda: facts)
        monkeypatch.setattr(slurm, "torch_facts", lambda: facts)

    return set_facts


def test_torch_without_a_gpu(
    torch_is: Callable[..., None], program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_is(version="2.13.0+cpu", cuda=None)
    assert only(gpus.check_torch()).verdict == "fine", "a login node"
    program("nvidia-smi", "[ \"$1\" = -L ] && echo 'GPU 0: H100' || echo '| Driver: 550  CUDA Version: 11.4 |'")
    finding = only(gpus.check_torch())
    assert finding.verdict == "mend"
    assert finding.advice.startswith("install torch 2.13.0 built for CUDA (for CUDA 11.4 at most)")
    torch_is()
    assert "the driver knows CUDA 11.4 at most" in only(gpus.check_torch()).found
    torch_is(cuda="11.8", warning="device is busy")
    assert "device is busy" in only(gpus.check_torch()).found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only(gpus.check_torch()).verdict == "note"
    torch_is(problem="libcudart.so.12 is missing (exit code 1)")
    assert only(gpus.check_torch()).verdict == "mend"


def test_a_job_without_a_gpu_is_told_so(
    torch_is: Callable[..., None], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_is()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    finding = only(gpus.check_torch())
    assert (finding.verdict, "--gpus-per-node" in finding.advice) == ("note", True)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "fine"),
        ({"capability": [7, 5]}, "note"),
        ({"free_bytes": 2**30}, "note"),
        ({"problem": "CUDA error: no kernel image is available"}, "mend"),
    ],
)
def test_a_gpu(torch_is: Callable[..., None], program: Program, changes: dict[str, Any], verdict: str) -> None:
    torch_is(gpus=[GPU | changes])
    assert verdicts(gpus.check_torch()) == {"torch": "fine", "GPU 0": verdict}


def test_engine_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps, expected in (
        ({"cpu": None}, ["fine"]),
        ({"cpu": "no kernel"}, ["mend"]),
        ({"cpu": "no kernel", "cuda": None}, ["note", "fine"]),
        ({"cpu": None, "cuda": "no libbitsandbytes_cuda126.so"}, ["fine", "mend"]),
    ):
        facts = {"version": "0.50.2", "steps": steps}
        monkeypatch.setattr(gpus, "probed", lambda _, facts=facts: facts)
        assert [finding.verdict for finding in gpus.check_bitsandbytes()] == expected
    loaded: dict[str, Any]
    for loaded, verdict in (
        ({"version": "0.19", "seconds": 3.0}, "fine"),
        ({"version": "0.19", "seconds": 90.0}, "note"),
        ({"problem": "ImportError"}, "mend"),
    ):
        monkeypatch.setattr(gpus, "probed", lambda _, facts=loaded: facts)
        assert only(gpus.check_deepspeed()).verdict == verdict
    assert only(gpus.check_bitsandbytes()).verdict == "mend"


# Between ranks


def test_collectives(torch_is: Callable[..., None]) -> None:
    for changes, name, verdict in (
        ({"gpus": [GPU]}, "NCCL", "fine"),
        ({"gpus": [GPU], "has_nccl": False}, "NCCL", "mend"),
        ({}, "gloo", "fine"),
        ({"has_gloo": False}, "gloo", "mend"),
        ({"problem": "broken"}, "NCCL", "note"),
    ):
        torch_is(**changes)
        assert verdicts(network.check_collectives()) == {name: verdict}


@pytest.mark.parametrize(
    ("variable", "value", "verdict"),
    [
        ("NCCL_SOCKET_IFNAME", "ib", "fine"),  # the beginning of a name will do
        ("NCCL_SOCKET_IFNAME", "=ib", "mend"),
        ("NCCL_SOCKET_IFNAME", "^docker", "fine"),
        ("NCCL_SOCKET_IFNAME", "eno1", "mend"),
        ("GLOO_SOCKET_IFNAME", "ib0", "fine"),
        ("GLOO_SOCKET_IFNAME", "ib0,eno1", "mend"),
    ],
)
def test_interfaces(variable: str, value: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "lo"), (2, "ib0")])
    monkeypatch.setenv(variable, value)
    assert only(network.check_interfaces()).verdict == verdict


def test_a_node_that_others_cannot_reach(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("getent", "echo '127.0.1.1 STREAM node1'")
    assert only(network.check_host_name()).verdict == "fine", "one node asks nobody"
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert only(network.check_host_name()).verdict == "mend"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert only(network.check_host_name()).verdict == "note"
    program("getent", "echo '10.0.0.1 STREAM node1'")
    assert only(network.check_host_name()).verdict == "fine"
    program("getent", "exit 2")
    assert only(network.check_host_name()).verdict == "mend"


def test_infiniband_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "INFINIBAND", tmp_path / "infiniband")
    assert only(network.check_infiniband()).verdict == "fine"
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert only(network.check_infiniband()).verdict == "note"
    (tmp_path / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert only(network.check_infiniband()).found == "mlx5_0"
    monkeypatch.setattr(network, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(network, "MIN_SHARED_BYTES", 0)
    assert only(network.check_shared_memory()).verdict == "fine"
    monkeypatch.setattr(network, "MIN_SHARED_BYTES", 1 << 62)
    assert only(network.check_shared_memory()).verdict == "note"


# Disks


FAST = {"write_speed": 500e6, "read_speed": 900e6, "small_file_s": 1e-4, "lock_problem": None}


@pytest.fixture
def disk_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """One disk under the run's folder, all others fast and local."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(disks, "MOUNTS", tmp_path / "mounts")

    def set_facts(kind: str = "ext4", options: str = "rw", free: float = 1e12, **changes: Any) -> None:
        (tmp_path / "mounts").write_text(f"a / ext4 rw 0 0\nb {tmp_path / 'run'} {kind} {options} 0 0\n")

        def probed(_: str, folder: str, timeout_s: float) -> dict[str, Any]:
            facts = changes if "problem" in changes else FAST | changes
            return facts if folder == str(tmp_path / "run") else FAST

        monkeypatch.setattr(disks, "probed", probed)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, free))

    return set_facts


@pytest.mark.parametrize(
    ("changes", "verdict", "word"),
    [
        ({}, "fine", "ext4"),
        ({"kind": "nfs4"}, "fine", "nfs4, shared"),
        ({"kind": "nfs4", "read_speed": 20e6}, "note", "loader.copy_to"),
        ({"kind": "lustre", "small_file_s": 0.1}, "note", "loader.copy_to"),
        ({"kind": "lustre", "options": "rw,localflock"}, "note", "one node only"),
        ({"lock_problem": "Function not implemented"}, "mend", "flock"),
        ({"free": 10e9}, "note", "three checkpoints"),
        ({"free": 1e6}, "mend", "make room"),
        ({"kind": "tmpfs"}, "note", "memory"),
        ({"problem": "PermissionError: denied"}, "mend", "denied"),
        ({"problem": "no answer within 30 s"}, "mend", "took longer"),
    ],
)
def test_the_run_s_disk(
    disk_is: Callable[..., None], tmp_path: Path, changes: dict[str, Any], verdict: str, word: str
) -> None:
    disk_is(**changes)
    found = {finding.name: finding for finding in disks.Disks(tmp_path / "run").check()}
    assert found["run"].verdict == verdict
    assert word in found["run"].found + found["run"].advice


def test_folders_that_are_named_but_not_there(
    disk_is: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_is()
    monkeypatch.setenv("DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "mounts"))
    run = tmp_path / "run" / "not" / "yet"
    found = verdicts(disks.Disks(run).check())
    assert found == {"checkout": "fine", "run": "fine", "$DATA": "mend", "$TMPDIR": "mend"}
    assert not run.parent.exists()
    monkeypatch.setenv("DATA", str(tmp_path))
    assert verdicts(disks.Disks(run).check())["$DATA"] == "fine"


def test_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "LARGE_FILE_BYTES", 8 << 20)
    facts = disk_speed.measure(str(tmp_path))
    assert facts["lock_problem"] is None
    assert min(facts["write_speed"], facts["read_speed"], facts["small_file_s"]) > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="nowhere"):
        disk_speed.measure(str(tmp_path / "nowhere"))
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert disk_speed.measure(str(tmp_path))["lock_problem"] == "a second process gets a lock that is held"


# SLURM


CONFIG = """echo 'ClusterName = sono'
echo 'JobRequeue              = {requeue}'
echo 'KillWait                = 30 sec'
echo 'PreemptMode             = {mode}'"""


def test_a_machine_without_slurm(program: Program) -> None:
    assert only(slurm.check_commands()).verdict == "fine"
    assert list(slurm.check_partitions()) == []
    assert list(slurm.check_preemption(None)) == []
    program("sinfo", "exit 1")
    assert "sbatch, srun" in only(slurm.check_commands()).found


def test_a_cluster(program: Program, torch_is: Callable[..., None]) -> None:
    torch_is()
    for name in slurm.COMMANDS:
        program(name, "echo 'fatal: no controller' >&2; exit 1")
    assert "fatal: no controller" in only(slurm.check_commands()).found
    program(
        "sinfo",
        "[ $1 = --version ] && echo slurm-wlm 24.05.1 && exit\n"
        "echo 'gpu*|1-00:00:00|8|gpu:a100:4|up'\necho 'cpu|infinite|1|(null)|down'",
    )
    program("scontrol", CONFIG.format(requeue=1, mode="REQUEUE"))
    assert only(slurm.check_commands()).found == "24.05.1, cluster sono"
    up, down = slurm.check_partitions()
    assert (up.verdict, up.found) == ("fine", "gpu: 8 nodes, gpu:a100:4, 1-00:00:00 (default)")
    assert (down.verdict, down.found) == ("note", "cpu: 1 node, no GPUs, infinite, down")
    torch_is(cuda=None)
    assert "install a torch built for CUDA" in list(slurm.check_partitions())[-1].advice
    fast = {"requeue": "fine", "preemption": "fine", "KillWait": "fine"}
    assert verdicts(slurm.check_preemption(None)) == verdicts(slurm.check_preemption(1e9)) == fast
    slow = {finding.name: finding for finding in slurm.check_preemption(50e6)}
    assert slow["KillWait"].advice == "sbatch --signal=USR1@280"
    program("scontrol", CONFIG.format(requeue=0, mode="CANCEL"))
    assert verdicts(slurm.check_preemption(None)) == {"requeue": "note", "preemption": "note", "KillWait": "fine"}


def test_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(slurm.check_job()).found.startswith("none")
    now = int(time.time())

    def job(**changes: str) -> dict[str, str]:
        usual = {
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_JOB_START_TIME": str(now),
            "SLURM_JOB_END_TIME": str(now + 3600),
            "OMP_NUM_THREADS": "4",
        }
        for name, value in (usual | changes).items():
            monkeypatch.setenv(name, value)
        return verdicts(slurm.check_job())

    assert job() == {"job": "fine", "threads": "fine", "time limit": "fine"}
    assert job(OMP_NUM_THREADS="64")["threads"] == "note"
    assert job(SLURM_JOB_END_TIME=str(now + 60))["time limit"] == "note"
    assert job(SBATCH_SIGNAL="B:USR1@7200")["time limit"] == "note"
    assert job(SBATCH_SIGNAL="nonsense", SLURM_MEM_PER_NODE="8192")["time limit"] == "fine"


# Base models


HUB_ID = "some-org/ultrasound.sd-1"


@pytest.fixture
def cached_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    write_tiny_random_model(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_the_cache(cached_model: Path) -> None:
    assert [finding.verdict for finding in base_models.check_cache()] == ["fine", "fine"]
    (cached_model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    _, finding = base_models.check_cache()
    assert finding.verdict == "note"
    assert f"run: hf download {HUB_ID}" in finding.advice
    shutil.rmtree(cached_model.parents[2])
    finding = only(base_models.check_cache())
    assert (finding.verdict, base_models.USUAL in finding.advice) == ("note", True)


@pytest.mark.parametrize(
    "damage", ["tokenizer/vocab.json", "scheduler/scheduler_config.json", "model_index.json", "unet/config.json"]
)
def test_half_a_download(cached_model: Path, damage: str) -> None:
    from models.base import ModelConfig

    assert base_models.problem_of_base(ModelConfig(base=HUB_ID)) is None
    (cached_model / damage).unlink()
    (cached_model / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    problem = base_models.problem_of_base(ModelConfig(base=HUB_ID))
    assert problem is not None
    assert f"run: hf download {HUB_ID}" in problem
    (cached_model / damage).write_text("{")  # cut off
    assert damage.endswith("vocab.json") or base_models.problem_of_base(ModelConfig(base=HUB_ID))


def test_a_configuration(tmp_path: Path, cached_model: Path) -> None:
    from launch.config import load_config

    content = {
        "run": str(tmp_path / "run"),
        "model": {"base": HUB_ID},
        "databases": {
            "busi": {"kind": "busi", "root": str(tmp_path / "busi")},
            "ours": {"kind": "manifest", "path": str(tmp_path / "ours.csv")},
            "made": {"kind": "simulated", "count": 2},
        },
        "stages": [{"name": "one", "databases": ["busi"], "steps": 1}],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content))
    config = load_config(path)
    assert only(base_models.check_base(config)).verdict == "fine"
    found = {finding.name: finding for finding in base_models.check_databases(config)}
    assert {name: finding.verdict for name, finding in found.items()} == {
        "busi": "mend",
        "ours": "mend",
        "made": "fine",
    }
    assert found["busi"].found == f"busi: there is no folder {tmp_path / 'busi'}"
    finding = only(base_models.check_shards(config, str(path)))
    assert (finding.verdict, f"run: sonoshard prepare {path}" in finding.advice) == ("note", True)
    contents = config.shards_path / "64" / "fingerprint.json"
    contents.parent.mkdir(parents=True)
    contents.write_text("{}")
    assert only(base_models.check_shards(config, str(path))).verdict == "fine"
    other = load_config(path, ["model.base=some-org/absent"])
    finding = only(base_models.check_base(other))
    assert (finding.verdict, "run: hf download some-org/absent" in finding.advice) == ("mend", True)
    assert list(base_models.check_shards(other, str(path))) == []
