"""The scripts of slurm/ on a real cluster: they run as they are."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from launch.snapshot import SKEW_S
from tests.launch.test_all_databases import settings_of
from tests.launch.test_snapshot import git
from tests.slurm.cluster import Cluster
from tests.slurm.training import CHECKOUT, NUM_STEPS, Training, training

pytestmark = pytest.mark.slurm


def test_finetune_busi_leaves_a_model_and_the_code_that_made_it(undisturbed: Training) -> None:
    assert undisturbed.num_steps() == NUM_STEPS
    (code,) = (undisturbed.run / "code").iterdir()
    assert (code / "launch" / "train.py").read_bytes() == (CHECKOUT / "launch" / "train.py").read_bytes()
    undisturbed.assert_staged()
    assert undisturbed.record()["commit"] == (code / "COMMIT").read_text().strip()


def test_the_code_of_a_job_is_that_of_its_submission(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM is asked when that was."""
    (tmp_path / "launch").mkdir()
    for name in ("__init__", "git", "snapshot"):
        shutil.copy(CHECKOUT / "launch" / f"{name}.py", tmp_path / "launch")
    (tmp_path / "run.yaml").write_text("lr: 1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "as it was submitted")
    submitted = git(tmp_path, "rev-parse", "HEAD")
    took = f"--wrap={sys.executable} -m launch.snapshot run $SLURM_JOB_ID"
    job = cluster.sbatch("--hold", "--output=out.txt", took, cwd=tmp_path)
    time.sleep(SKEW_S + 1)
    (tmp_path / "run.yaml").write_text("lr: 2")
    git(tmp_path, "commit", "--quiet", "--all", "--message", "later")
    cluster.run("scontrol", "release", str(job))
    cluster.wait_for_state(job, "COMPLETED")
    assert (tmp_path / "run" / "code" / str(job) / "run.yaml").read_text() == "lr: 1"
    assert (tmp_path / "run" / "code" / str(job) / "COMMIT").read_text() == f"{submitted}\n"


def test_encode_as_a_job_array(cluster: Cluster, folder: Path, undisturbed: Training) -> None:
    """Two tasks on each of two nodes make the same shards as one job did."""
    arrayed = training(cluster, folder, "arrayed", f"shards={folder}/arrayed")
    arrayed.run.mkdir(parents=True)
    shutil.copy(undisturbed.run / "manifest.parquet", arrayed.run)
    options = ("--array=0-1", "--ntasks-per-node=2")
    arrayed.submit("encode.sh", "configs/busi.yaml", options=options)
    cluster.wait_until(lambda: cluster.run("squeue", "--noheader") == "", "all tasks of the array to end", 240)
    expected = undisturbed.run / "shards" / "64"
    tars = sorted(path.relative_to(expected) for path in expected.rglob("*.tar"))
    assert len(tars) == 3, "a split is a shard"
    for tar in tars:
        assert (folder / "arrayed" / "64" / tar).read_bytes() == (expected / tar).read_bytes()


def test_controlnet_busi_goes_on_where_finetune_busi_ended(
    cluster: Cluster, folder: Path, undisturbed: Training
) -> None:
    control = training(cluster, folder, "control", "stages.1.steps=10")
    shutil.copytree(undisturbed.run, control.run)  # which other clusters read meanwhile
    control.wait_for_end(control.submit("controlnet_busi.sh"))
    assert control.weights() == undisturbed.weights()
    assert control.num_steps("control") == 10
    assert control.weights("control", "controlnet")


def test_curriculum(cluster: Cluster, folder: Path) -> None:
    """Three databases, each on one GPU of each of two nodes; the GPUs are made up, and CUDA finds none."""
    roots = {
        name: settings_of(name.replace("_", "-"), folder / "data" / name)["root"] for name in ("bus_bra", "breast")
    }
    settings = [f"databases.{name}.root={root}" for name, root in roots.items()]
    settings += [f"stages.{number}.steps=5" for number in range(4)]
    curriculum = training(cluster, folder, "curriculum", *settings)
    options = ("--nodes=2", "--gpus=2")
    curriculum.wait_for_end(curriculum.submit("curriculum.sh", options=options), timeout_s=400)
    assert [curriculum.num_steps(name) for name in ("bus_bra", "breast", "busi", "control")] == [5] * 4
    assert curriculum.num_ranks() == 2


@pytest.mark.parametrize("script", ["finetune_busi", "controlnet_busi", "curriculum", "train"])
def test_a_script_asks_for_time_to_save_and_to_be_queued_again(script: str) -> None:
    """The drills give times of their own, and cannot see that the scripts have these."""
    options = re.findall(r"^#SBATCH (\S+)", (CHECKOUT / "slurm" / f"{script}.sh").read_text(), re.MULTILINE)
    assert {"--signal=USR1@120", "--requeue"} <= set(options)


def test_what_the_user_gave_wrong_is_told_at_once_and_not_run_again(cluster: Cluster, folder: Path) -> None:
    wrong = training(cluster, folder, "wrong", "optimizer.lr=-1")
    job = wrong.submit("finetune_busi.sh", options=("--nodes=1",))
    assert cluster.wait_for_state(job, "FAILED") == "FAILED"
    said = Path(cluster.job(job)["StdOut"]).read_text()
    assert "sonoshard: " in said
    assert "optimizer.lr" in said
    assert cluster.job(job)["Restarts"] == "0"


def test_a_batch_that_the_ranks_cannot_share_is_told_before_anything_is_made(cluster: Cluster, folder: Path) -> None:
    wrong = training(cluster, folder, "odd", "batch.global_size=3")
    job = wrong.submit("finetune_busi.sh")
    assert cluster.wait_for_state(job, "FAILED") == "FAILED"
    assert "sonoshard: batch.global_size=3 is not micro_size=1 x 2 ranks" in wrong.log()
    assert not (wrong.run / "manifest.parquet").exists()
