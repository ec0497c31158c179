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


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["zero.offload=optimizer", "zero.stage=0"], "needs zero.stage 1, 2 or 3, found 0"),
        (["zero.offload=optimizer", "optimizer.paged=true"], "has nothing to page: set one of them back"),
        (["zero.offload=optimizer", "optimizer.master=stochastic", "precision=bf16"], "set zero.offload=none, or"),
        (["optimizer.paged=true", "optimizer.master=stochastic", "precision=bf16"], "set one of them back"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_loaded(
    prepared: Path, overrides: list[str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_run(load_config(prepared, overrides), 1, on_gpu=True)


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
