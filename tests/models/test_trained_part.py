"""What trains is what was asked for, computes with every setting, and becomes a whole model and a file for others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from pydantic import ValidationError
from torch import Tensor

from models.base import ModelConfig
from models.saving import save_pipeline
from models.stable_diffusion import empty_unet, load_unet
from models.trained_part import LORA_FILE, LoraConfig, TrainedPart, lora_files, train_only, whole_weights

PARTS: tuple[TrainedPart, ...] = ("all", "cross_attention", "lora")
LORA = LoraConfig(rank=3, alpha=12)


def unet_of(config: ModelConfig, trains: TrainedPart, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    unet = load_unet(config, dtype)
    train_only(unet, trains, LORA, seed=5)
    return unet


def trained_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return what trains in `unet`, changed, float32."""
    noise = torch.Generator().manual_seed(1)
    named = {name: p.detach().float() for name, p in unet.named_parameters() if p.requires_grad}
    return {name: value + 0.1 * torch.randn(value.shape, generator=noise) for name, value in named.items()}


def output(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 32, generator=generator)
    sample: Tensor = unet(noisy.to(unet.dtype), torch.tensor([10, 900]), text.to(unet.dtype)).sample
    return sample


def base_weights(config: ModelConfig) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load_unet(config, torch.float32).named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_was_asked_for_trains_and_the_start_computes_as_the_base(
    config: ModelConfig, dtype: torch.dtype
) -> None:
    base = load_unet(config, dtype)
    expected = output(base)
    everything = [name for name, _ in base.named_parameters()]
    for trains in PARTS:
        unet = unet_of(config, trains, dtype)
        names = [name for name, p in unet.named_parameters() if p.requires_grad]
        assert {p.dtype for p in unet.parameters()} == {dtype}
        assert torch.equal(output(unet), expected), "B is 0"
        match trains:
            case "all":
                assert names == everything
            case "cross_attention":
                assert names == [name for name in everything if ".attn2." in name]
                assert any(name.endswith("attn2.to_k.weight") for name in names)
            case "lora":
                projections = [n for n in everything if "attn" in n and n.endswith("weight") and ".to_" in n]
                assert len(names) == 2 * len(projections)
                assert all(f".lora_{'AB'[number % 2]}." in name for number, name in enumerate(names))


def test_the_start_of_lora_is_the_seeds_on_every_rank_and_in_every_dtype(config: ModelConfig) -> None:
    torch.manual_seed(0)
    one = unet_of(config, "lora").state_dict()
    torch.manual_seed(1)
    again, half = unet_of(config, "lora").state_dict(), unet_of(config, "lora", torch.bfloat16).state_dict()
    other = load_unet(config, torch.float32)
    train_only(other, "lora", LORA, seed=6)
    first = [name for name in one if ".lora_A." in name]
    for name, value in one.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value.bfloat16(), half[name])
    for name in first:
        bound = one[name].shape[1] ** -0.5
        assert 0.8 * bound < float(one[name].abs().max()) <= bound
        assert not torch.equal(one[name], other.state_dict()[name])
    assert len({one[name].flatten()[0].item() for name in first}) == len(first), "each draws its own"


@pytest.mark.parametrize("trains", PARTS)
@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"attention": "eager"}, {"channels_last": True}])
def test_settings_for_training_change_no_gradient(
    config: ModelConfig, trains: TrainedPart, setting: dict[str, object]
) -> None:
    gradients: list[dict[str, Tensor]] = []
    for update in ({}, setting):
        unet = unet_of(config.model_copy(update=update), trains)
        unet.load_state_dict(trained_weights(unet), strict=False)
        output(unet).square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == trained_weights(unet).keys()
    for name, gradient in gradients[0].items():
        # Sums in another order, as in test_stable_diffusion.
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trains", PARTS)
def test_whole_weights_compute_as_the_parts_that_were_trained(config: ModelConfig, trains: TrainedPart) -> None:
    unet = unet_of(config, trains)
    trained = trained_weights(unet)
    unet.load_state_dict(trained, strict=False)
    whole = load_unet(config, torch.float32)
    whole.load_state_dict(whole_weights(config, trained, trains, LORA))
    # A product of matrices more or less: some float32 roundings of values near 1.
    torch.testing.assert_close(output(whole), output(unet), rtol=1e-5, atol=1e-5)
    base = base_weights(config)
    changed = {name for name, p in whole.named_parameters() if not torch.equal(p, base[name])}
    assert changed == {name.split(".lora_")[0] + ".weight" if trains == "lora" else name for name in trained}


def test_a_model_of_lora_is_whole_and_has_the_changes_beside_it(config: ModelConfig, tmp_path: Path) -> None:
    """Trained in bfloat16, whose rounding of the base must not be in what is saved."""
    trained = trained_weights(unet_of(config, "lora", torch.bfloat16))
    folded, base = whole_weights(config, trained, "lora", LORA), base_weights(config)
    for name, weight in folded.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.default.weight" in trained:
            change = trained[f"{module}.lora_B.default.weight"] @ trained[f"{module}.lora_A.default.weight"]
            torch.testing.assert_close(weight, base[name] + 12 / 3 * change, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(weight, base[name])
    save_pipeline(config, folded, tmp_path / "model", {}, lora_files(trained, "lora", LORA))
    assert (tmp_path / "model" / LORA_FILE).is_file()
    saved = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    theirs = StableDiffusionPipeline.from_pretrained(config.base, local_files_only=True)
    with torch.no_grad():
        before = output(theirs.unet)
        theirs.load_lora_weights(tmp_path / "model")
        torch.testing.assert_close(output(theirs.unet), output(saved.unet), rtol=1e-5, atol=1e-5)
    assert (output(saved.unet) - before).abs().max() > 1e-3
    assert lora_files(trained, "all") == {}


@pytest.mark.parametrize("trains", PARTS)
def test_shapes_are_enough(config: ModelConfig, trains: TrainedPart) -> None:
    empty = empty_unet(config)
    train_only(empty, trains, LORA)
    assert all(p.is_meta for p in empty.parameters())
    real = unet_of(config, trains)
    assert [(n, p.shape, p.requires_grad) for n, p in empty.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in real.named_parameters()
    ]


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"alpha": float("inf")}, {"targets": ["to_q"]}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraConfig.model_validate(wrong)
    assert (LoraConfig().scale, LORA.scale) == (1, 4)
