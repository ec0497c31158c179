"""Submits a run from Python, by submitit: to SLURM, or to processes of this machine.

    from launch.submit import submit
    (job,) = submit("configs/busi.yaml", ["optimizer.lr=2e-5"], nodes=2, gpus_per_node=4, partition="gpu")
    print(job.results()[0])

A job holds the configuration's name and nothing of the training: when it starts, also for the second time, it looks
for the newest checkpoint. Of a stop submitit would tell the first rank alone, whose save then waits for the others for
ever; here every rank hears of it, all save, and the job's script has SLURM queue it again.
"""

import atexit
import os
import shlex
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from distributed.stop_request import StoppedOnRequest, StopRequest, handlers_put_back
from launch.config import RunConfig, load_config
from launch.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER_ERROR, USER_ERRORS, ConfigError
from launch.failure import end_at_once, leave_exit_code
from launch.forgetting import validation_losses
from launch.freed_memory import keep_freed_memory
from launch.job import announce_job
from launch.quiet import quiet_libraries
from launch.record import config_text
from launch.snapshot import CHECKOUT, snapshot
from launch.streams import outlive_readers
from models.record import read_record

if TYPE_CHECKING:
    import submitit

ClusterKind = Literal["slurm", "local", "debug"]
# Seconds that a save has before time is up.
SAVING_S = 120
# sbatch's own variables for what `submit` always says.
SET_BY_SUBMIT = {"SBATCH_TIMELIMIT", "SBATCH_JOB_NAME", "SBATCH_SIGNAL", "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"}
SET_BY_SUBMIT |= {"SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_CPUS_PER_GPU"}


@dataclass(frozen=True)
class RunJob:
    """What every task of a job calls. until: name of the last stage that is trained."""

    config: Path
    until: str

    def __call__(self) -> dict[str, Any]:
        """Train as one rank, and return the run's summary.

        A job that was told to stop ends here, with a checkpoint saved and an exit code that has it run again.
        Raises: RuntimeError where nothing runs it again; what is wrong.
        """
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        from launch.rank_process import listen_for_stop

        if _executor_name() != "debug":
            outlive_readers()
            # Of a start that failed, while nobody knew that there would be another: results() would raise it.
            JobEnvironment().paths.result_pickle.unlink(missing_ok=True)

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        with handlers_put_back():
            # These take the place of submitit's own handlers.
            stop = listen_for_stop()
            keep_freed_memory()
            quiet_libraries()
            self._train(stop)
        from distributed.rank import leave_process_group

        # Not after a failure: leaving the process group may wait for ranks that wait for this one.
        leave_process_group()
        if _executor_name() != "debug":
            # As in rank_process: the interpreter's own end, after submitit wrote the result, may abort.
            atexit.register(end_at_once, 0)
        return summary(load_config(self.config), self.until)

    def _train(self, stop: StopRequest) -> None:
        from distributed.rank import wait_for_all
        from launch.rank_process import train_as_rank

        try:
            train_as_rank(self.config, _of_this_node(os.environ, load_config(self.config)), stop, self.until)
        except StoppedOnRequest:
            wait_for_all()
            code = _code_to_go_on(stop)
            if code is not None:
                end_at_once(code)
            raise RuntimeError("stopped on request, with a checkpoint saved: submit it again to go on") from None
        except Exception as error:
            leave_exit_code(EXIT_USER_ERROR if isinstance(error, USER_ERRORS) else EXIT_FAILED)
            raise


def _of_this_node(environment: Mapping[str, str], config: RunConfig) -> list[str]:
    """Return the overrides that have shards read from the node's own disk, where the site has one; as slurm/job.sh."""
    disk = environment.get("SLURM_TMPDIR")
    return [f"loader.copy_to={disk}"] if disk and config.loader.copy_to is None else []


def _executor_name() -> str:
    """Return what submitit started this process with: slurm, local or debug."""
    return os.environ.get("SUBMITIT_EXECUTOR", "debug")


def _code_to_go_on(stop: StopRequest) -> int | None:
    """Return the exit code after which a stopped task is run again; None if nothing would."""
    from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

    if _executor_name() == "slurm":  # the job's script decides
        return EXIT_STOPPED
    # What submitit itself sends on this machine when time is up; anything else is a person's wish.
    is_time_up = _executor_name() == "local" and stop.received == signal.SIGUSR2
    return LOCAL_REQUEUE_RETURN_CODE if is_time_up else None


def summary(config: RunConfig, until: str) -> dict[str, Any]:
    """Return the run's folder, and of each stage by its name its model's folder, its record and its last losses.

    losses: of the validation after the stage, by database.
    """
    stages = {}
    for stage in config.stages_until(until):
        folder = config.stage_model(stage)
        record = read_record(folder) or {}
        losses = validation_losses(config, stage, record.get("steps"))
        stages[stage.name] = {"model": str(folder), "losses": losses, **record}
    return {"run": str(config.run), "stages": stages}


def submit(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: ClusterKind = "slurm",
    nodes: int = 1,
    gpus_per_node: int = 1,
    cpus_per_rank: int = 1,
    time_min: int = 24 * 60,
    partition: str | None = None,
    chain: bool = False,
    sbatch: Mapping[str, Any] | None = None,
) -> list["submitit.Job[dict[str, Any]]"]:
    """Submit a run whose shards are there, and return its jobs: one, or with `chain` one per stage, in their order.

    The configuration and, on SLURM, the code are those of now. gpus_per_node: as many ranks per node; 0: one rank, on
    the CPU (debug: on what this process sees). cpus_per_rank: CPU cores of each. sbatch: further options, such as
    {"account": "lab"}. All of them count, whatever SBATCH_* variables say; those of other options count too.
    chain: a stage's job waits for the end of the one before, and is taken out of the queue if that fails.
    A job's results() are the ranks' summaries, see `summary`; it raises what a rank failed of, also while SLURM is
    about to start the job for another time.

    On this machine (local, debug) `chain` waits for each stage in turn.
    Raises: the error of whatever is wrong, before anything is queued.
    """
    import torch

    from launch.dry_run import check_run

    settings = load_config(Path(config), overrides)
    # A relative path may mean something else where the job starts.
    settings = settings.model_copy(update={"run": settings.run.absolute()})
    num_ranks = max(1, gpus_per_node)
    if cluster != "slurm" and nodes > 1:
        raise ConfigError(f"nodes={nodes}, but {cluster} is this machine: take 1, or cluster slurm")
    if cluster == "debug" and num_ranks > 1:
        raise ConfigError(f"gpus_per_node={num_ranks}, but debug runs in this process alone: take 1, or cluster local")
    sees_gpu = cluster == "slurm" or torch.cuda.is_available()
    on_gpu = sees_gpu and (gpus_per_node > 0 or cluster == "debug")
    check_run(settings, world_size=nodes * num_ranks, on_gpu=on_gpu)
    executor = _executor(cluster, settings.run)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    # As it is now, whatever is edited until the job starts.
    frozen = settings.run / "submitit" / f"{stamp}.yaml"
    frozen.parent.mkdir(parents=True, exist_ok=True)
    frozen.write_text(config_text(settings), encoding="utf-8")
    executor.update_parameters(
        nodes=nodes, tasks_per_node=num_ranks, cpus_per_task=cpus_per_rank, timeout_min=time_min, name=settings.run.name
    )
    if cluster == "local" and on_gpu:  # else submitit hides them
        executor.update_parameters(gpus_per_node=num_ranks)
    if cluster == "slurm":
        code = snapshot(settings.run, stamp)
        executor.update_parameters(
            slurm_partition=partition,
            slurm_signal_delay_s=SAVING_S,
            slurm_srun_args=_srun_arguments(gpus_per_node, cpus_per_rank),
            slurm_setup=_setup(code, settings, cpus_per_rank),
            slurm_teardown=['finish "$?"'],
            **({"slurm_gpus_per_node": gpus_per_node} if gpus_per_node else {}),
        )
    jobs: list[submitit.Job[dict[str, Any]]] = []
    # submitit writes its own options so, and the last one of a name counts.
    options = {name.replace("-", "_"): value for name, value in (sbatch or {}).items()}
    overruled = {*SET_BY_SUBMIT, *(f"SBATCH_{name.upper()}" for name in options)}
    overruled |= {"SBATCH_PARTITION"} if partition else set()
    for stage in settings.stages if chain else settings.stages[-1:]:
        after = {"dependency": f"afterok:{jobs[-1].job_id}", "kill-on-invalid-dep": "yes"} if jobs else {}
        executor.update_parameters(slurm_additional_parameters={"requeue": True, **options, **after})
        with _without(overruled if cluster != "slurm" else overruled | _of_own_job()):
            jobs.append(executor.submit(RunJob(frozen, stage.name)))
        if cluster == "slurm":
            announce_job(settings.run, jobs[-1].job_id, stage.name if chain else settings.run.name)
        elif chain:
            jobs[-1].results()
    return jobs


def _of_own_job() -> set[str]:
    """Return the variables of the job that submits from within one: its cores and tasks are not the new one's."""
    if "SLURM_JOB_ID" not in os.environ:
        return set()
    return {name for name in os.environ if name.startswith(("SLURM_", "SRUN_"))} - {"SLURM_CONF"}


@contextmanager
def _without(variables: Collection[str]) -> Iterator[None]:
    """Take variables out of the environment meanwhile: to sbatch they mean more than what a job's script asks for."""
    taken = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def submit_and_tell(config: Path, overrides: Sequence[str], *, sbatch: Sequence[str], **options: Any) -> None:
    """Submit as `submit` does, and say what was queued. sbatch: KEY=VALUE each."""
    faulty = [option for option in sbatch if "=" not in option]
    if faulty:
        raise ConfigError(f"--sbatch {faulty[0]} is no KEY=VALUE, such as account=lab")
    if options["cluster"] not in get_args(ClusterKind):
        raise ConfigError(f"--cluster {options['cluster']}: needed one of {', '.join(get_args(ClusterKind))}")
    jobs = submit(config, overrides, sbatch=dict(option.split("=", 1) for option in sbatch), **options)
    for job in jobs:
        print(f"job {job.job_id}, its log: {job.paths.stdout}")
    run = load_config(config, overrides).run
    print(f"how far it is: sonoshard status {run}")
    if options["cluster"] == "debug":
        jobs[-1].results()


def _executor(cluster: ClusterKind, run: Path) -> "submitit.AutoExecutor":
    import submitit

    try:
        return submitit.AutoExecutor(run / "submitit", cluster=cluster)
    except RuntimeError as error:
        raise ConfigError(f"{error} Submit from a login node, or take cluster local") from error


def _srun_arguments(gpus_per_node: int, cpus_per_rank: int) -> list[str]:
    # A dead task ends the others, which would wait for it. Of sbatch's --cpus-per-task srun does not know.
    arguments = ["--kill-on-bad-exit=1", "--open-mode=append", f"--cpus-per-task={cpus_per_rank}"]
    # Each rank sees all GPUs of its node, as NCCL wants it.
    return [*arguments, "--gpu-bind=none"] if gpus_per_node else arguments


def _setup(code: Path, config: RunConfig, cpus_per_rank: int) -> list[str]:
    """Return the lines of a job's script before srun: the site's settings, and what the job scripts share."""
    site = shlex.quote(str(CHECKOUT / "slurm" / "site.sh"))
    return [
        f"if [ -f {site} ]; then source {site}; fi",
        f"export PYTHONPATH={shlex.quote(str(code))} PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1",
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cpus_per_rank}}}",
        f"source {shlex.quote(str(code / 'slurm' / 'job.sh'))}",
        f"RUN={shlex.quote(str(config.run))} SHARDS={shlex.quote(str(config.shards_path.absolute()))}",
        "name_job",
        "know_run",
    ]
