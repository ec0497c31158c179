"""What is known of the making of the model: training.json beside the weights, and the two files made of it.

README.md is for people; sonoshard.json is what every model that this project trains has, from which cards are made.
"""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from data.databases.simulated import SimulatedDatabase
from launch.training_data import KEY, Training
from models.record import RECORD_FILE
from tools.make_tiny.pace import Pace
from tools.make_tiny.recipe import Recipe

CARD = Path(__file__).with_name("model_card.md")


def update_record(folder: Path, phase: str, **facts: Any) -> dict[str, Any]:
    """Set what is recorded of `phase` in training.json, leave the other phases, and return all of it."""
    file = folder / "training.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    record[phase] = facts
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def training_facts(recipe: Recipe, device: str, pace: Pace) -> dict[str, Any]:
    """Return what every phase of training records."""
    return {
        "steps": pace.step,
        "minutes": round(pace.seconds / 60, 1),
        "time_limit_s": pace.time_limit_s,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})",
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "recipe": asdict(recipe),
    }


def size_bytes(folder: Path) -> int:
    """Return the size of all files in `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def write_model_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what the model was trained on, as a model's record has it. Its prompts are paraphrased: none is kept."""
    images = record["vae"]["recipe"]["images"]
    presets = ", ".join(sorted(set(images["cycle"])))
    database = {
        "database": "built-in",
        "kind": "simulated",
        "title": f"Simulated B-mode images ({presets}); no evidence of clinical realism",
        "licence": SimulatedDatabase.about.licence,
        "simulated": True,
        "images": images["num_train"],
    }
    known = {"steps": record["denoiser"]["steps"], KEY: asdict(Training([database], bases=[folder.name]))}
    (folder / RECORD_FILE).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def write_readme(folder: Path, record: dict[str, Any]) -> None:
    """Write the README of the model from its record."""
    vae, denoiser, proof = record["vae"], record["denoiser"], record["proof"]
    recipe = denoiser["recipe"]
    images = vae["recipe"]["images"]
    cycle = images["cycle"]
    figures = {**proof["vae"], **proof["samples"], "validation noise error": denoiser["validation_loss"]}
    text = CARD.read_text(encoding="utf-8").format(
        images=images,
        shares=", ".join(f"{cycle.count(preset)}/{len(cycle)} {preset}" for preset in sorted(set(cycle))),
        vae=vae,
        vae_batch=vae["recipe"]["vae"]["batch_size"],
        vae_millions=vae["parameters"] / 1e6,
        denoiser=denoiser,
        recipe=recipe["denoiser"],
        context_tokens=recipe["tokenizer"]["context_tokens"],
        unet_millions=denoiser["parameters"]["unet"] / 1e6,
        text_millions=denoiser["parameters"]["text_encoder"] / 1e6,
        versions=", ".join(f"{name} {version}" for name, version in denoiser["versions"].items()),
        figures="\n".join(f"| {name} | {figure:.3f} |" for name, figure in figures.items()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
