"""Pictures and figures that show what the built-in model can do. All images are held-out or sampled."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw

from tools.make_tiny.autoencoder import as_pixels, decode, encode
from tools.make_tiny.captions import proof_prompt
from tools.make_tiny.images import SimulatedSet
from tools.make_tiny.recipe import ProofRecipe

ZOOM = 2
LABEL_PIXELS = 16


@dataclass(frozen=True)
class Row:
    """One labelled row of a contact sheet."""

    label: str
    images: list[np.ndarray]  # uint8 [H, W] each


def save_sheet(rows: list[Row], file: Path) -> None:
    """Write the rows as one greyscale PNG, magnified by whole pixels."""
    side = rows[0].images[0].shape[0] * ZOOM
    width, height = max(len(row.images) for row in rows) * side, len(rows) * (side + LABEL_PIXELS)
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = r * (side + LABEL_PIXELS)
        pen.text((4, top + 2), row.label, fill=255)
        for c, image in enumerate(row.images):
            sheet.paste(
                Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (c * side, top + LABEL_PIXELS)
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def kinds(images: SimulatedSet) -> dict[tuple[str, str], list[int]]:
    """Return the rows of each (preset, label), kinds in order of name."""
    rows: dict[tuple[str, str], list[int]] = {}
    for index, kind in enumerate(zip(images.presets, images.labels, strict=True)):
        rows.setdefault(kind, []).append(index)
    return dict(sorted(rows.items()))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images_NHW: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
    """Return what the autoencoder makes of uint8 images (from the mean of their latents), uint8 of the same shape."""
    made = []
    for batch in torch.from_numpy(images_NHW).split(batch_size):
        pixels = decode(vae, encode(vae, as_pixels(batch.to(vae.device))).mean)
        made.append(((pixels[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())
    return np.concatenate(made)


def prove_vae(vae: AutoencoderKL, images: SimulatedSet, recipe: ProofRecipe, file: Path) -> dict[str, float]:
    """Write pairs of rows, real above reconstructed, for each kind; return the figures over all of `images`."""
    real, made = images.images_NHW, reconstruct(vae, images.images_NHW)
    rows = []
    for (preset, label), members in kinds(images).items():
        chosen = members[: recipe.num_columns]
        rows.append(Row(f"{preset}, {label}: simulated, held out", list(real[chosen])))
        rows.append(Row(f"{preset}, {label}: reconstructed", list(made[chosen])))
    save_sheet(rows, file)
    difference = (made.astype(np.float32) - real) / 127.5
    size = real.shape[-1] // 4
    coarse = difference.reshape(len(real), size, 4, size, 4).mean(axis=(2, 4))
    return {
        "L1": float(np.abs(difference).mean()),
        "L1 of 4x4 averages": float(np.abs(coarse).mean()),
        "speckle SNR, simulated": speckle_snr(real),
        "speckle SNR, reconstructed": speckle_snr(made),
        "grain, reconstructed over simulated": grain(made) / grain(real),
        "repetition every 8 pixels, simulated": repetition(real),
        "repetition every 8 pixels, reconstructed": repetition(made),
    }


def sample(folder: Path, prompts: list[str], recipe: ProofRecipe, device: str) -> list[list[np.ndarray]]:
    """Return for each prompt the images of seeds 0, 1, 2, ..., sampled with the model as it lies in `folder`."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for prompt in prompts:
        drawn = pipeline(
            prompt,
            num_images_per_prompt=recipe.num_columns,
            generator=[torch.Generator().manual_seed(seed) for seed in range(recipe.num_columns)],
            num_inference_steps=recipe.sampling_steps,
            guidance_scale=recipe.guidance_scale,
        )
        rows.append([np.asarray(image.convert("L")) for image in drawn.images])
    return rows


def prove_samples(folder: Path, images: SimulatedSet, recipe: ProofRecipe, device: str, work: Path) -> dict[str, float]:
    """Write rows of simulated images above rows of samples; return figures over those of samples.png.

    samples.png has a plain caption for each kind of image, prompts.png the commonest prompts of the simulator.
    """
    plain = {proof_prompt(preset, label): members for (preset, label), members in kinds(images).items()}
    own: dict[str, list[int]] = {}
    for index, prompt in enumerate(images.prompts):
        own.setdefault(prompt, []).append(index)
    commonest = sorted(own, key=lambda prompt: (-len(own[prompt]), prompt))[: recipe.num_columns]
    real, made = _sample_sheet(folder, images, plain, recipe, device, work / "samples.png")
    _sample_sheet(
        folder, images, {prompt: own[prompt] for prompt in sorted(commonest)}, recipe, device, work / "prompts.png"
    )
    return {
        "mean grey level, simulated": float(real.mean()),
        "mean grey level, sampled": float(made.mean()),
        "speckle SNR, sampled": speckle_snr(made),
        "grain, sampled over simulated": grain(made) / grain(real),
    }


def _sample_sheet(
    folder: Path, images: SimulatedSet, members: dict[str, list[int]], recipe: ProofRecipe, device: str, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Write one sheet, real above sampled for each prompt of `members`; return all images of either sort."""
    sampled = sample(folder, list(members), recipe, device)
    rows, shown = [], []
    for (prompt, indices), row in zip(members.items(), sampled, strict=True):
        shown += indices[: recipe.num_columns]
        rows.append(Row(f"simulated: {prompt}", list(images.images_NHW[indices[: recipe.num_columns]])))
        rows.append(Row(f"sampled: {prompt} (seeds 0 to {recipe.num_columns - 1})", row))
    save_sheet(rows, file)
    return images.images_NHW[shown], np.stack([image for row in sampled for image in row])


def speckle_snr(images_NHW: np.ndarray, *, dynamic_range_db: float = 60, window: int = 16) -> float:
    """Return the median over bright windows of mean over deviation of the envelope.

    The log compression is undone with one assumed dynamic range: compare images with each other, not with theory.
    """
    height, width = (side // window * window for side in images_NHW.shape[1:])
    tiles = images_NHW[:, :height, :width].reshape(-1, height // window, window, width // window, window)
    tiles = tiles.swapaxes(2, 3).reshape(-1, window * window).astype(np.float32)
    bright = tiles[(tiles.mean(1) > 25) & ((tiles >= 255).mean(1) < 0.05)]
    envelope = 10 ** (bright / 255 * dynamic_range_db / 20)
    return float(np.median(envelope.mean(1) / np.maximum(envelope.std(1), 1e-6)))


def grain(images_NHW: np.ndarray) -> float:
    """Return the mean absolute difference of vertical neighbours in grey levels: a blur lowers it."""
    return float(np.abs(np.diff(images_NHW.astype(np.float32), axis=1)).mean())


def repetition(images_NHW: np.ndarray, *, period: int = 8) -> float:
    """Return how far the spectrum stands out at multiples of 1 / `period`: 1 where nothing repeats with the latents."""
    power = (np.abs(np.fft.rfft2(images_NHW.astype(np.float32) - images_NHW.mean())) ** 2).mean(axis=0)
    step = images_NHW.shape[1] // period
    peaks = np.arange(step, power.shape[1] - 2, step)
    along = [power[0, peaks] / ((power[0, peaks - 1] + power[0, peaks + 1]) / 2)]
    along.append(power[peaks, 0] / ((power[peaks - 1, 0] + power[peaks + 1, 0]) / 2))
    return float(np.mean(along))
