"""What is checked before training: on a login node for the GPU that is not there, and where it is trained for good."""

from pathlib import Path

import pytest

from launch.config import load_config
from launch.dry_run import check_run
from launch.errors import ConfigError


@pytest.mark.parametrize("on_gpu", [None, True])
def test_auto_is_bf16_where_a_gpu_is_meant(prepared: Path, on_gpu: bool | None) -> None:
    config = load_config(prepared, ["optimizer.master=stochastic", "precision=auto"])
    assert "stage busi: 20 steps" in check_run(config, 1, on_gpu)
    with pytest.raises(ConfigError, match="but this run trains in fp32: set precision=bf16"):
        check_run(load_config(prepared, ["optimizer.master=stochastic", "precision=fp32"]), 1, on_gpu)


def test_auto_is_fp32_where_it_is_trained_on_a_cpu(prepared: Path) -> None:
    with pytest.raises(ConfigError, match="but this run trains in fp32: set precision=bf16"):
        check_run(load_config(prepared, ["optimizer.master=stochastic", "precision=auto"]), 1, on_gpu=False)


def test_paging_is_noted_on_a_login_node_and_refused_where_it_cannot_be(prepared: Path) -> None:
    config = load_config(prepared, ["optimizer.paged=true"])
    note = "note: optimizer.paged=true needs a GPU where this is trained"
    assert note in check_run(config, 1)
    assert note not in check_run(config, 1, on_gpu=True)
    assert note not in check_run(load_config(prepared), 1)
    with pytest.raises(ConfigError, match=r"and this machine has no GPU: set optimizer\.paged=false"):
        check_run(config, 1, on_gpu=False)
