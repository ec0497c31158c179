"""Who trains a run: RUN/job.json, written by the first rank when a stage's training begins or goes on.

Which jobs of SLURM are the run's, those that wait and those that encode among them: RUN/jobs/ID, a folder each.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from data.durable import replacing

JOB_FILE = "job.json"
JOBS_FOLDER = "jobs"


class SlurmJob(BaseModel):
    """What SLURM calls the job."""

    id: str = Field(description="SLURM_JOB_ID: unique, also for a task of an array.")
    array: str | None = Field(None, description="Of a task of an array, its other name, such as 120_3.")
    nodes: str | None = Field(None, description="SLURM_JOB_NODELIST, such as node[7-8].")
    num_restarts: int = Field(0, description="How often SLURM had requeued it when this process began.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "SlurmJob | None":
        """Return the job that this process belongs to; None outside of SLURM."""
        if not (number := environment.get("SLURM_JOB_ID")):
            return None
        array = [environment.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK")]
        return cls(
            id=number,
            array="_".join(map(str, array)) if all(array) else None,
            nodes=environment.get("SLURM_JOB_NODELIST"),
            num_restarts=int(environment.get("SLURM_RESTART_COUNT") or 0),
        )


class Job(BaseModel):
    """The process of the first rank, and what it knew when it began or went on with a stage."""

    process: int
    host: str
    started: float = Field(description="When it began or went on with this stage, in Unix seconds.")
    stage: str = Field(description="The stage's name.")
    stage_steps: dict[str, int] = Field(description="Steps of each stage of the run; `epochs` come to so many.")
    world_size: int
    slurm: SlurmJob | None = Field(None, description="None: not a job of SLURM.")


def write_job(run: Path, stage: str, stage_steps: Mapping[str, int], world_size: int) -> None:
    """Write RUN/job.json for this process."""
    job = Job(
        process=os.getpid(),
        host=socket.gethostname(),
        started=time.time(),
        stage=stage,
        stage_steps=dict(stage_steps),
        world_size=world_size,
        slurm=SlurmJob.from_environment(os.environ),
    )
    with replacing(run / JOB_FILE) as temporary:
        temporary.write_text(job.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_job(run: Path) -> Job | None:
    """Return what RUN/job.json says; None where there is none, or one of another version."""
    try:
        return Job.model_validate_json((run / JOB_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def announce_job(run: Path, number: str, name: str) -> None:
    """Write RUN/jobs/ID/name for a job of SLURM; slurm/job.sh does so for itself."""
    with replacing(run / JOBS_FOLDER / number / "name") as temporary:
        temporary.write_text(f"{name}\n", encoding="utf-8")


def announced_jobs(run: Path) -> dict[str, str]:
    """Return the names of the run's jobs by SLURM's number, the latest first."""
    files = [file for file in run.glob(f"{JOBS_FOLDER}/*/name") if file.parent.name.isdecimal()]
    latest_first = sorted(files, key=lambda file: int(file.parent.name), reverse=True)
    return {file.parent.name: file.read_text(encoding="utf-8", errors="replace").strip() for file in latest_first}
