"""Which part of the shards is encoded: as it was told, or by the place in a SLURM job array."""

from collections.abc import Mapping

from launch.errors import ConfigError


def part_of_job(part: int | None, num_parts: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the part to encode, counted from 0, and how many parts there are.

    part, num_parts: what the command line says, which goes before all else. Otherwise each task of a job array is a
    part. Raises: ConfigError if these do not make whole parts.
    """
    if (part is None) != (num_parts is None):
        raise ConfigError("--part and --parts belong together, such as --part 0 --parts 8")
    if part is not None and num_parts is not None:
        if part >= num_parts:
            raise ConfigError(f"--part {part} of --parts {num_parts}: the parts are counted from 0 to {num_parts - 1}")
        return part, num_parts
    return _part_of_array(environment)


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
