"""What a run will take is told from its configuration alone, and a cell that cannot be is refused with the reason."""

from pathlib import Path

import pytest
import torch

from distributed.errors import EngineError
from launch.config import load_config
from launch.memory import compared, predict, print_prediction, saved_bytes

DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"


def test_ranks_and_checkpointing_take_less_of_what_they_should() -> None:
    whole, half, checkpointed = (
        predict(load_config(DEMO, overrides), num_ranks, torch.bfloat16, on_gpu=True)
        for overrides, num_ranks in (([], 1), ([], 2), (["model.gradient_checkpointing=true"], 1))
    )
    for kind in ("gradients", "master", "optimizer", "ema"):
        assert half[kind] == pytest.approx(whole[kind] / 2, rel=0.01)  # but for padding to whole blocks
    assert half["parameters"] == pytest.approx(whole["parameters"], rel=0.01)
    assert checkpointed["activations"] < whole["activations"] / 2
    assert whole["master"] == 2 * whole["parameters"]


def test_what_is_frozen_takes_weights_alone() -> None:
    overrides: dict[str, list[str]] = {
        "all": [],
        "lora": ["stages.0.trains=lora"],
        "cross_attention": ["stages.0.trains=cross_attention", "stages.0.optimizer.l2_sp=1"],
    }
    whole, lora, pulled = (
        predict(load_config(DEMO, given), 2, torch.bfloat16, on_gpu=True) for given in overrides.values()
    )
    assert "frozen" not in whole
    assert "start" not in whole
    for part in (lora, pulled):
        for kind in ("gradients", "master", "optimizer", "ema"):
            assert part[kind] < whole[kind] / 5
        assert part["activations"] < whole["activations"]
    # But for padding to whole blocks.
    assert lora["frozen"] == pytest.approx(whole["parameters"], rel=0.01)
    assert pulled["frozen"] + pulled["parameters"] == pytest.approx(whole["parameters"], rel=0.01)
    assert pulled["start"] == pulled["master"] / 2, "bf16, half on each of two ranks"
    config = load_config(DEMO, overrides["lora"])
    stage = config.stages[0].model_copy(update={"trains": "all", "lora": None})
    assert predict(config, 2, torch.bfloat16, on_gpu=True, stage=stage) == whole


def test_the_table_shows_every_kind_and_both_totals(capsys: pytest.CaptureFixture[str]) -> None:
    print_prediction(load_config(DEMO, ["zero.offload=optimizer"]), world_size=2)
    shown = capsys.readouterr().out
    for text in ("parameters", "master, host", "activations", "total, GPU", "total, host", "no checkpointing *"):
        assert text in shown


@pytest.mark.parametrize("overrides", [[], ["zero.offload=optimizer"], ["optimizer.master=stochastic"]])
def test_an_asynchronous_save_copies_masters_moments_and_averages(
    overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(DEMO, [*overrides, "precision=bf16", "checkpoint.is_async=true"])
    print_prediction(config, world_size=2)
    shown = capsys.readouterr().out
    kinds = predict(config, 2, torch.bfloat16, on_gpu=True)
    num_parameters = kinds["parameters"] / 2
    # 8-bit AdamW with one average, on two ranks; norms and biases, of 32 bits, and padding are some per cent here.
    of_master = 2 if "optimizer.master=stochastic" in overrides else 4
    expected = (of_master + 2 + 4) * num_parameters / 2
    copied = saved_bytes(config, kinds, 2)
    assert copied == pytest.approx(expected, rel=0.05)
    assert f"An asynchronous save copies up to {copied / 1e6:,.1f} MB of each rank to host memory" in shown


def test_settings_that_do_not_go_together_have_no_prediction() -> None:
    with pytest.raises(EngineError, match=r"optimizer\.master=stochastic updates bf16 weights in place"):
        print_prediction(load_config(DEMO, ["precision=fp32", "optimizer.master=stochastic"]), world_size=1)


def test_predicted_and_measured_stand_in_one_line() -> None:
    line = compared({"parameters": 2_000_000, "master": 0}, {"parameters": 2_100_000, "master": 0, "peak": 9})
    assert line == "MB predicted / measured: parameters 2.0 / 2.1"
