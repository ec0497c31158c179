"""Every shard belongs to just one process, however SLURM started them."""

import pytest

from launch.errors import ConfigError
from launch.parts import part_of_job


def array(task: int, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    return {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in zip(names, (task, first, last, count, step), strict=True)}


def test_alone_it_is_all() -> None:
    assert part_of_job(None, None, {}) == (0, 1)


@pytest.mark.parametrize(("first", "step"), [(0, 1), (1, 1), (3, 1), (0, 4), (5, 2)])
def test_a_job_arrays_tasks_are_the_parts(first: int, step: int) -> None:
    ids = range(first, first + 6 * step, step)
    found = [part_of_job(None, None, array(task, first, ids[-1], 6, step)) for task in ids]
    assert found == [(part, 6) for part in range(6)]


def test_the_command_line_goes_before_slurm() -> None:
    assert part_of_job(2, 5, array(1, 1, 3, 3)) == (2, 5)


def test_what_makes_no_whole_parts() -> None:
    with pytest.raises(ConfigError, match=r"--part and --parts belong together, such as --part 0 --parts 8"):
        part_of_job(1, None, {})
    with pytest.raises(ConfigError, match=r"--part 3 of --parts 3: the parts are counted from 0 to 2"):
        part_of_job(3, 3, {})
    message = r"the job array has 3 tasks from 1 to 9, which are not evenly apart: submit it as --array=0-2, or give"
    with pytest.raises(ConfigError, match=message):
        part_of_job(None, None, array(5, 1, 9, 3))
