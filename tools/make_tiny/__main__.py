"""Make the built-in model `models/tiny` from simulated images and a seed.

    python -m tools.make_tiny all --out models/tiny --work runs/tiny

trains the autoencoder, then text encoder and UNet together, and writes pictures and figures that show what came out.
The phases can be run one by one (`images`, `vae`, `denoiser`, `proof`): each needs only the folder that the one
before wrote, and simulates its images anew where the work folder has none. Numbers of the recipe are set as
`vae.steps=500`; all of them, and why they are as they are, stand in tools/make_tiny/recipe.py.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tools.make_tiny.images import SimulatedSet, load_or_simulate
from tools.make_tiny.recipe import Recipe, RecipeError

# torch and diffusers are imported inside the phases: the processes that simulate images load this file too.


class Phase(StrEnum):
    """What to do."""

    IMAGES = "images"
    VAE = "vae"
    DENOISER = "denoiser"
    PROOF = "proof"
    ALL = "all"


def make_images(recipe: Recipe, work: Path) -> tuple[SimulatedSet, SimulatedSet]:
    """Return the training and the held-out images."""
    train = load_or_simulate(recipe.images, work, held_out=False)
    held_out = load_or_simulate(recipe.images, work, held_out=True)
    print(f"images: {len(train.prompts)} for training, {len(held_out.prompts)} held out, such as:")
    for index in range(len(recipe.images.cycle)):
        print(f"  {train.presets[index]}, {train.labels[index]}: {train.prompts[index]}", flush=True)
    return train, held_out


def make_vae(
    recipe: Recipe,
    images: SimulatedSet,
    out: Path,
    device: str,
    *,
    time_limit_s: float | None,
    compiled: bool,
    warm: bool,
) -> None:
    """Train the autoencoder and write it to `out`/vae."""
    import torch
    from diffusers import AutoencoderKL

    from tools.make_tiny.autoencoder import new_vae, train_vae
    from tools.make_tiny.pace import Pace
    from tools.make_tiny.record import training_facts, update_record

    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL.from_pretrained(out / "vae") if warm else new_vae(recipe.vae, recipe.images.size)
    pace = Pace("vae", recipe.vae.steps, time_limit_s)
    train_vae(vae.to(device), images.images_NHW, recipe.vae, pace, seed=recipe.seed, compiled=compiled)
    vae.half().save_pretrained(out / "vae")
    facts = training_facts(recipe, device, pace)
    update_record(out, "vae", parameters=vae.num_parameters(), warm=warm, **facts)


def make_denoiser(
    recipe: Recipe,
    train: SimulatedSet,
    held_out: SimulatedSet,
    out: Path,
    device: str,
    *,
    time_limit_s: float | None,
    compiled: bool,
    warm: bool,
) -> None:
    """Train tokenizer, text encoder and UNet for `out`/vae and write the whole model to `out`."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from tools.make_tiny.captions import paraphrases
    from tools.make_tiny.denoiser import (
        encode_set,
        new_scheduler,
        new_text_encoder,
        new_unet,
        train_denoiser,
        validation_loss,
    )
    from tools.make_tiny.pace import Pace
    from tools.make_tiny.record import training_facts, update_record
    from tools.make_tiny.tokenizer import train_tokenizer

    # As it will be loaded: with weights that were rounded to float16.
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device).eval()
    torch.manual_seed(recipe.seed)
    if warm:
        tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(out / "unet")
    else:
        kinds = sorted(set(zip(train.presets, train.labels, strict=True)))
        texts = sorted(set(train.prompts)) + [text for kind in kinds for text in paraphrases(*kind)]
        tokenizer = train_tokenizer(texts, recipe.tokenizer, out / "tokenizer")
        text_encoder = new_text_encoder(recipe.denoiser, tokenizer)
        unet = new_unet(recipe.denoiser, recipe.images.size // 8)
    text_encoder, unet = text_encoder.to(device), unet.to(device)
    latents = encode_set(train, vae, tokenizer)
    spread = (latents.mean_N2CHW.float().square() + latents.std_N2CHW.float().square()).mean().sqrt()
    print(f"latents: {tuple(latents.mean_N2CHW.shape)}, deviation {spread:.3f}, {len(latents.tokens_TL)} captions")
    pace = Pace("denoiser", recipe.denoiser.steps, time_limit_s)
    train_denoiser(unet, text_encoder, latents, recipe.denoiser, pace, seed=recipe.seed, compiled=compiled)
    with torch.compiler.set_stance("force_eager"):
        loss = validation_loss(unet, text_encoder, encode_set(held_out, vae, tokenizer))
    print(f"denoiser: validation noise error {loss:.4f}")
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)
    update_record(
        out,
        "denoiser",
        validation_loss=loss,
        latents_std=spread.item(),
        vocabulary=len(tokenizer),
        parameters={"unet": unet.num_parameters(), "text_encoder": text_encoder.num_parameters()},
        warm=warm,
        **training_facts(recipe, device, pace),
    )


def prove(recipe: Recipe, held_out: SimulatedSet, out: Path, work: Path, device: str) -> None:
    """Write pictures to `work`, figures and README to `out`, and print figures and sizes."""
    from diffusers import AutoencoderKL

    from tools.make_tiny.proof import prove_samples, prove_vae
    from tools.make_tiny.record import size_bytes, update_record, write_model_record, write_readme

    vae = AutoencoderKL.from_pretrained(out / "vae").to(device).eval()
    vae_figures = prove_vae(vae, held_out, recipe.proof, work / "reconstructions.png")
    figures = {"vae": vae_figures, "samples": {}}
    if (out / "model_index.json").exists():
        figures["samples"] = prove_samples(out, held_out, recipe.proof, device, work)
        record = update_record(out, "proof", **figures)
        write_readme(out, record)
        write_model_record(out, record)
    for name, figure in (vae_figures | figures["samples"]).items():
        print(f"proof: {name} {figure:.4f}")
    for part in sorted(path for path in out.iterdir() if path.is_dir()):
        print(f"size: {part.name} {size_bytes(part) / 1e6:.2f} MB")
    print(f"size: {size_bytes(out) / 1e6:.2f} MB in all; pictures in {work}", flush=True)


def main(
    phase: Phase,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE of the recipe, such as vae.steps=500")
    ] = None,
    out: Annotated[Path, typer.Option(help="The model's folder.")] = Path("models/tiny"),
    work: Annotated[Path, typer.Option(help="Images and proof pictures.")] = Path("runs/tiny"),
    device: Annotated[str, typer.Option(help="cuda or cpu. Default: cuda where there is one.")] = "",
    time_limit_s: Annotated[float | None, typer.Option(help="For each phase of training; it ends annealed.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    warm: Annotated[bool, typer.Option(help="Start from the weights in --out.")] = False,
) -> None:
    """Make the built-in model, or one phase of it."""
    try:
        recipe = Recipe().with_overrides(overrides or [])
    except RecipeError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    train, held_out = make_images(recipe, work)
    if phase is Phase.IMAGES:
        return

    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if phase in (Phase.VAE, Phase.ALL):
        make_vae(recipe, train, out, device, time_limit_s=time_limit_s, compiled=compiled, warm=warm)
    if phase in (Phase.DENOISER, Phase.ALL):
        make_denoiser(recipe, train, held_out, out, device, time_limit_s=time_limit_s, compiled=compiled, warm=warm)
    prove(recipe, held_out, out, work, device)


if __name__ == "__main__":
    typer.run(main)
