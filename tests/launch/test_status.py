"""`sonoshard status` on made-up runs, each in a state that a run can be in."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from launch.cli import app
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.job import Job, SlurmJob, announce_job, read_job, write_job
from launch.lock import lock_holder, locked
from launch.record import config_text
from launch.slurm_queue import SlurmQueue
from launch.stage_config import StageConfig
from launch.status import RunStatus, read_statuses
from launch.status_table import drawn, duration, print_status
from launch.step_log import NEWEST_BYTES, StepLog, newest_steps, read_steps
from models.record import RECORD_FILE

NOW = 1_800_000_000.0
HERE = socket.gethostname()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is taken at NOW."""
    monkeypatch.setattr("launch.status.time.time", lambda: NOW)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of three stages of which the second one has epochs, begun: nothing but its configuration is there."""
    config = RunConfig.model_validate(
        {
            "run": tmp_path / "run",
            "model": {"base": "tiny"},
            "databases": {"one": {"kind": "simulated", "count": 2}},
            "stages": [
                {"name": "first", "databases": ["one"], "steps": 400, "early_stop": {"patience": 3}},
                {"name": "second", "databases": ["one"], "epochs": 2.5},
                {"name": "control", "kind": "controlnet", "databases": ["one"], "steps": 500},
            ],
        }
    )
    config.run.mkdir()
    (config.run / "config.yaml").write_text(config_text(config), encoding="utf-8")
    return config


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def train(config: RunConfig, stage: StageConfig, num_steps: int, *, age_s: float = 2.0, step_s: float = 2.0) -> None:
    """Write what `num_steps` of a stage leave, the last one `age_s` ago; with a checkpoint 10 steps before that."""
    folder = config.stage_path(stage)
    times = [NOW - age_s - step_s * (num_steps - step) for step in range(1, num_steps + 1)]
    write_lines(folder / "steps.jsonl", [{"step": n + 1, "loss": 0.5, "ids": ["a"]} for n in range(num_steps)])
    rates = [{"step": n + 1, "time": at, "samples_per_s": 32.0} for n, at in enumerate(times)]
    write_lines(folder / "times.jsonl", rates)
    write_lines(folder / "validation.jsonl", [{"step": 0, "mean": 0.9, "losses": {}}, {"step": 20, "mean": 0.25}])
    checkpoint = folder / "checkpoints" / f"step-{num_steps - 10:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}", encoding="utf-8")
    os.utime(checkpoint / "manifest.json", (NOW - 65, NOW - 65))
    (checkpoint.parent / "LATEST").write_text(checkpoint.name + "\n", encoding="utf-8")


def finish(config: RunConfig, stage: StageConfig, num_steps: int, **record: Any) -> None:
    """Write the record of a stage's model."""
    config.stage_model(stage).mkdir(parents=True)
    content = {"steps": num_steps, "epochs": stage.epochs, **record}
    (config.stage_model(stage) / RECORD_FILE).write_text(json.dumps(content), encoding="utf-8")


def half_done(config: RunConfig, *, age_s: float = 2.0, step_s: float = 2.0) -> None:
    """Write a run whose first stage ended early and whose second one has 100 of 300 steps."""
    first, second, _ = config.stages
    assert first.early_stop
    train(config, first, 240, age_s=9000)
    finish(config, first, 180, early_stop=first.early_stop.model_dump(), validation_loss=0.125)
    train(config, second, 100, age_s=age_s, step_s=step_s)


def be_job(config: RunConfig, *, process: int, host: str, started: float, slurm: SlurmJob | None = None) -> None:
    """Write who trains or trained the second stage of a run, with its lock file but without the lock."""
    steps = {"first": 400, "second": 300, "control": 500}
    job = Job(process=process, host=host, started=started, stage="second", stage_steps=steps, world_size=2, slurm=slurm)
    (config.run / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    (config.run / ".lock").write_text(f"process {process} on {host}\n", encoding="utf-8")


def look(config: RunConfig) -> RunStatus:
    (status,) = read_statuses([config.run], SlurmQueue())
    return status


def told(*statuses: RunStatus, width: int = 80) -> str:
    console = Console(width=width, file=StringIO(), highlight=False)
    console.print(drawn(statuses))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def row(text: str, first: str) -> str:
    """Return the row of the table that begins with `first`, with single spaces."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [first])


@contextmanager
def fake_squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Iterator[Path]:
    """Put a `squeue` of these shell lines on PATH, and nothing else; yield the file that has its calls."""
    folder.mkdir()
    program, calls = folder / "squeue", folder / "calls"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n', encoding="utf-8")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(folder))
        yield calls


def test_a_training_run_tells_everything_of_its_stages(config: RunConfig) -> None:
    half_done(config)
    with locked(config.run):
        be_job(config, process=os.getpid(), host=HERE, started=NOW - 120)
        status = look(config)
    assert [stage.state for stage in status.stages] == ["done", "training", "waiting"]
    first, second, control = status.stages
    assert (first.step, first.num_steps, first.has_ended_early, first.validation_loss) == (180, 400, True, 0.125)
    assert (second.step, second.num_steps, second.loss, second.validation_loss) == (100, 300, 0.5, 0.25)
    assert (second.samples_per_s, second.pace_s) == (32.0, 2.0)
    assert (second.checkpoint_step, second.checkpoint_time) == (90, NOW - 65)
    assert status.left_s(second) == 400
    assert status.left_s(control) == 1000, "at the pace of the stage that trains"
    assert status.run_left_s == 1400
    text = told(status)
    assert row(text, "first") == "first done early 180/400 0.5000 0.1250 32.0 - 230 (1m)"
    assert row(text, "second") == "second training 100/300 0.5000 0.2500 32.0 6m40s 90 (1m)"
    assert row(text, "control") == "control waiting 0/500 - - - 16m40s -"
    assert "23m20s of training left" in text
    assert f"trained by process {os.getpid()} on {HERE}, 2 ranks, for 2m00s\nlast step 2s ago" in text


def test_the_pace_is_that_of_the_process_that_trains(config: RunConfig) -> None:
    half_done(config)
    path = config.stage_path(config.stages[1]) / "times.jsonl"
    entries = read_steps(path)
    for entry in entries[:95]:
        entry["time"] -= 86400  # the job waited for a day, and has made five steps since
    write_lines(path, entries)
    be_job(config, process=1, host=HERE, started=NOW - 11)
    assert look(config).stages[1].pace_s == 2.0
    be_job(config, process=1, host=HERE, started=NOW - 1)
    assert look(config).stages[1].pace_s == 2.0, "not a step yet: that of the processes before"


def test_a_run_without_a_process_is_stopped(config: RunConfig) -> None:
    half_done(config, age_s=7200)
    be_job(config, process=os.getpid(), host=HERE, started=NOW - 9000)
    status = look(config)
    assert status.state == "stopped", "the process is there and has no lock: another one with its number"
    text = told(status)
    assert f"last trained by process {os.getpid()} on {HERE}, 2 ranks\nlast step 2h00m ago" in text


def test_a_run_that_has_only_begun(config: RunConfig) -> None:
    status = look(config)
    assert [stage.state for stage in status.stages] == ["waiting"] * 3
    assert status.run_left_s is None
    text = told(status)
    assert "nobody has trained here" in text
    assert row(text, "second") == "second waiting 0/? - - - - -", "epochs: not known before it starts"
    write_lines(config.stage_path(config.stages[0]) / "steps.jsonl", [])
    with locked(config.run):
        status = look(config)
        assert status.state == "training"
        assert f"process {os.getpid()} on {HERE} is about to train" in told(status)
        (config.run / "config.yaml").unlink()
        assert "run  training  2027" in told(look(config), width=200)
        assert row(told(look(config), look(config), width=200), str(config.run)).endswith("training - - - - - -")


def test_a_line_that_is_half_written_is_left_out(config: RunConfig) -> None:
    half_done(config)
    for name in ("steps", "times", "validation"):
        with (config.stage_path(config.stages[1]) / f"{name}.jsonl").open("ab") as file:
            file.write('{"step": 101, "loss": 0.2, "ids": ["ä'.encode()[:-1])
    stage = look(config).stages[1]
    assert (stage.step, stage.loss, stage.validation_loss, stage.samples_per_s) == (100, 0.5, 0.25, 32.0)


def test_losses_that_are_not_finite_do_not_count(config: RunConfig) -> None:
    second = config.stages[1]
    half_done(config)
    losses = [None, 0.1, None, 0.3]
    write_lines(config.stage_path(second) / "steps.jsonl", [{"step": 97 + n, "loss": x} for n, x in enumerate(losses)])
    write_lines(config.stage_path(second) / "validation.jsonl", [{"step": 20, "losses": {}, "mean": None}])
    stage = look(config).stages[1]
    assert stage.loss == pytest.approx(0.2)
    assert stage.validation_loss is None


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", 0)
    for step in range(1, 2001):
        log.write({"step": step, "ids": ["x" * 1000]})
    log.close()
    newest = newest_steps(tmp_path / "steps.jsonl")
    assert newest == read_steps(tmp_path / "steps.jsonl")[-len(newest) :]
    assert 1000 < len(newest) < NEWEST_BYTES / 1000
    assert newest_steps(tmp_path / "none.jsonl") == []


def test_a_finished_run(config: RunConfig) -> None:
    for stage, num_steps in zip(config.stages, (400, 300, 500), strict=True):
        train(config, stage, num_steps)
        finish(config, stage, num_steps)
    be_job(config, process=1, host="elsewhere", started=NOW - 9000, slurm=SlurmJob(id="123"))
    status = look(config)
    assert (status.state, status.current, status.run_left_s) == ("done", None, 0)
    text = told(status)
    assert row(text, "second").startswith("second done 300/300 ")
    assert "process" not in text
    assert "SLURM" not in text


def test_on_another_machine_without_slurm_times_decide(config: RunConfig) -> None:
    half_done(config, age_s=180)
    be_job(config, process=12, host="elsewhere", started=NOW - 9000)
    status = look(config)
    assert status.state == "training"
    assert "trained by process 12 on elsewhere, 2 ranks, for 2h30m (another machine: not seen" in told(status, width=99)
    train_later = config.stage_path(config.stages[1]) / "times.jsonl"
    write_lines(train_later, [entry | {"time": entry["time"] - 3600} for entry in read_steps(train_later)])
    status = look(config)
    assert status.state == "stopped"
    assert "last trained by process 12 on elsewhere, 2 ranks\nlast step 1h03m ago" in told(status)


SLURM_STATES = {
    "123|RUNNING|2027-01-15T07:00:00|2:13:00|4:00:00|None": (
        "training",
        "SLURM job 123 (120_3) on node[7-8]: RUNNING, 2:13:00 left of 4:00:00, requeued 2",
    ),
    "123|PENDING|2027-01-15T09:30:00|4:00:00|4:00:00|Resources": (
        "queued",
        "SLURM job 123 (120_3): PENDING (Resources), expected start 2027-01-15T09:30:00,",
    ),
    "123|PENDING|N/A|4:00:00|4:00:00|BeginTime": ("queued", "PENDING (BeginTime), expected start not known"),
    "123|TIMEOUT|2027-01-15T07:00:00|0:00|4:00:00|TimeLimit": ("stopped", "(120_3): TIMEOUT (TimeLimit), requeued 2"),
    "": ("stopped", "SLURM job 123 (120_3), requeued 2 times so far: SLURM does not know it any"),
}


@pytest.mark.parametrize("line", SLURM_STATES, ids=lambda line: line.split("|")[1] if line else "forgotten")
def test_what_slurm_says_of_the_job(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    half_done(config, age_s=9000)
    slurm = SlurmJob(id="123", array="120_3", nodes="node[7-8]", num_restarts=2)
    be_job(config, process=12, host="node7", started=NOW - 9000, slurm=slurm)
    with fake_squeue(tmp_path / "bin", monkeypatch, f"echo '{line}'") as calls:
        status = look(config)
    assert calls.read_text(encoding="utf-8").endswith("-j 123\n")
    state, expected = SLURM_STATES[line]
    assert status.state == state
    assert expected in told(status)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "SLURM does not know it any more"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "squeue gives no answer here"),
    ],
)
def test_a_squeue_that_fails(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    half_done(config)
    be_job(config, process=12, host="node7", started=NOW - 9000, slurm=SlurmJob(id="123"))
    with fake_squeue(tmp_path / "bin", monkeypatch, script):
        assert f"SLURM job 123: {expected}" in told(look(config))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "SLURM job 123: squeue gives no answer here" in told(look(config))


def test_squeue_is_asked_once_for_all_runs_and_not_at_every_look(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(config)
    other = config.model_copy(update={"run": tmp_path / "other"})
    other.run.mkdir()
    (other.run / "config.yaml").write_text(config_text(other), encoding="utf-8")
    be_job(config, process=12, host="node7", started=NOW - 9000, slurm=SlurmJob(id="123"))
    be_job(other, process=12, host="node8", started=NOW - 9000, slurm=SlurmJob(id="124"))
    lines = "echo '123|RUNNING|x|1:00|2:00|None'; echo '124|PENDING|N/A|1:00|2:00|Priority'"
    with fake_squeue(tmp_path / "bin", monkeypatch, lines) as calls:
        queue = SlurmQueue()
        for _ in range(3):
            statuses = read_statuses([config.run, other.run], queue)
    assert len(calls.read_text(encoding="utf-8").splitlines()) == 1
    assert [status.state for status in statuses] == ["training", "queued"]
    text = told(*statuses, width=200)
    figures = "training 2/3 second 100/300 0.5000 32.0 23m20s 90 (1m)"
    assert row(text, str(config.run)) == f"{config.run} {figures}"
    told(*statuses)


def test_a_job_that_encodes_is_seen_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    for number in range(121, 130):
        announce_job(run, str(number), "encode")
    lines = "; ".join(f"echo '{number}|RUNNING|x|1:00|2:00|None'" for number in range(121, 130))
    with fake_squeue(tmp_path / "bin", monkeypatch, lines):
        (status,) = read_statuses([run], SlurmQueue())
    assert status.state == "preparing"
    text = told(status)
    assert "SLURM job 121 (encode): RUNNING, 1:00 left of 2:00\n" in text
    assert text.endswith("and 3 more jobs\n")
    with fake_squeue(tmp_path / "none", monkeypatch, "true"):
        (status,) = read_statuses([run], SlurmQueue())
    assert status.state == "stopped"


def test_the_next_job_of_a_chain_is_seen_while_it_waits(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(config, age_s=9000)
    be_job(config, process=12, host="node7", started=NOW - 9000, slurm=SlurmJob(id="123", nodes="node7"))
    for number, name in ((123, "second"), (124, "control")):
        announce_job(config.run, str(number), name)
    running, waiting = "echo '123|RUNNING|x|1:00|2:00|None'", "echo '124|PENDING|N/A|2:00|2:00|Dependency'"
    for lines, state in ((f"{running}; {waiting}", "training"), (waiting, "queued")):
        with fake_squeue(tmp_path / state, monkeypatch, lines):
            status = look(config)
        assert status.state == state
        assert told(status).count("SLURM job 123") == 1
        assert "SLURM job 124 (control): PENDING (Dependency), expected start not known\n" in told(status)


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, expected in (("none", "does not exist"), ("file", "is a file"), ("", "has no config.yaml")):
        result = CliRunner().invoke(app, ["status", str(tmp_path / name)])
        assert result.exit_code == 2
        assert result.stderr.startswith("sonoshard: ")
        assert expected in result.stderr
        assert result.stderr.count("\n") == 1


def test_nothing_is_written(config: RunConfig) -> None:
    def everything() -> Mapping[Path, tuple[int, int]]:
        paths = config.run.rglob("*")
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

    half_done(config)
    be_job(config, process=1, host=HERE, started=NOW - 9000)
    before = everything()
    assert CliRunner().invoke(app, ["status", str(config.run)]).exit_code == 0
    assert everything() == before


def test_a_look_does_not_refuse_a_trainer(config: RunConfig) -> None:
    assert lock_holder(config.run) is None
    with locked(config.run):
        holder = lock_holder(config.run)
        assert holder is not None
        assert (holder.process, holder.host, holder.is_there) == (os.getpid(), HERE, True)
        with pytest.raises(ConfigError), locked(config.run):
            pass
    holder = lock_holder(config.run)
    assert holder is not None
    assert holder.is_there is False


def test_watching_prints_again_until_interrupted(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[float] = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("launch.status_table.time.sleep", wait)
    half_done(config)
    print_status([config.run], watch=True)
    assert capsys.readouterr().out.count(" 100/? ") == 3, "no job.json: nobody knows what the epochs come to"
    looks.clear()
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_status([config.run], watch=True)
    assert " 100/? " in capsys.readouterr().out


def test_a_job_is_written_with_what_slurm_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"JOB_ID": "123", "ARRAY_JOB_ID": "120", "ARRAY_TASK_ID": "3", "JOB_NODELIST": "n[1-2]"}
    for name, value in {**slurm, "RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    write_job(tmp_path, "second", {"first": 3, "second": 4}, world_size=2)
    job = read_job(tmp_path)
    assert job is not None
    assert (job.process, job.host, job.stage, job.stage_steps["second"]) == (os.getpid(), HERE, "second", 4)
    assert job.slurm == SlurmJob(id="123", array="120_3", nodes="n[1-2]", num_restarts=2)
    monkeypatch.delenv("SLURM_JOB_ID")
    write_job(tmp_path, "second", {}, world_size=1)
    assert (again := read_job(tmp_path)) is not None
    assert again.slurm is None
    (tmp_path / "job.json").write_text("{", encoding="utf-8")
    assert read_job(tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "-"), (-1.0, "0s"), (59.6, "1m00s"), (3599.0, "59m59s"), (3661.0, "1h01m"), (90000.0, "1d01h")],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected
