"""Which part of the shards a process encodes: as it was told, or by its place in a SLURM job."""

from collections.abc import Mapping

from launch.errors import ConfigError


def part_of_job(part: int | None, num_parts: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the part to encode, counted from 0, and how many parts there are.

    part, num_parts: what the command line says, which goes before all else. Otherwise each task of a job array is a
    part, and within it each task that srun started. Raises: ConfigError if these do not make whole parts.
    """
    if (part is None) != (num_parts is None):
        raise ConfigError("--part and --parts belong together, such as --part 0 --parts 8")
    if part is not None and num_parts is not None:
        if part >= num_parts:
            raise ConfigError(f"--part {part} of --parts {num_parts}: the parts are counted from 0 to {num_parts - 1}")
        return part, num_parts
    part, num_parts = _part_of_array(environment)
    # Not SLURM_NTASKS, which a batch script has too that runs as one process.
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    number = int(environment["SLURM_PROCID"]) if num_tasks > 1 else 0
    # Every num_parts-th shard is the array task's, and every num_tasks-th of those this process's.
    return part + num_parts * number, num_parts * num_tasks


def _part_of_array(environment: Mapping[str, str]) -> tuple[int, int]:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    names = [f"SLURM_ARRAY_TASK_{what}" for what in ("ID", "MIN", "MAX", "COUNT", "STEP")]
    task, first, last, count, step = (int(environment.get(name, "1")) for name in names)
    if last != first + (count - 1) * step:
        raise ConfigError(
            f"the job array has {count} tasks from {first} to {last}, which are not evenly apart: submit it as"
            f" --array=0-{count - 1}, or give each task --part and --parts"
        )
    return (task - first) // step, count
