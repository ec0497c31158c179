"""Commands that make something of trained models."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.commands.arguments import Config, Overrides
from launch.terminal import one_line_errors


def average(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Name of a stage. Default: the last.")] = None,
    length: Annotated[
        float | None,
        typer.Option(
            help="Width as a fraction of the training so far; one that was not kept is put together from those that"
            " were. Default: the first of ema.lengths."
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="LATEST, BEST, or a folder's name such as step-00000400.")] = "LATEST",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: RUN/stages/STAGE/averages/LENGTH.")
    ] = None,
) -> None:
    """Write averaged weights of a length chosen after training."""
    with one_line_errors():
        from launch.config import load_config
        from tools.average import write_average

        settings = load_config(config, overrides or ())
        print(write_average(settings, stage_name=stage, length=length, checkpoint=checkpoint, out=out))


def merge(
    out: Annotated[Path, typer.Argument(help="Folder to write, which must not be there yet.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Models: diffusers folders, stages, hub ids, .safetensors files, or checkpoints"
            " (RUN/stages/STAGE/checkpoints/step-00000100) with @raw, @ema or @ema=0.1.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="weighted, soup, blocks, slerp, add-difference, ties or dare. Default: weighted."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W",
            help="One for each source, relative; with add-difference for each but the first. Default: even.",
        ),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=W,W",
            help="Other weights in down.0, mid, up.0, time, conv_in, conv_out, attention and the like.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What the sources were made from: for add-difference, ties and dare.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the changes that is kept. Default: 0.2 with ties, 0.5 with dare.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Of the changes, with ties and dare. Default: 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what dare drops. Default: 0.")] = None,
    part: Annotated[
        str | None, typer.Option(help="unet or controlnet. Default: the UNet, and the ControlNet if all have one.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16. Default: the first source's.")] = None,
    single_file_config: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id that gives the architecture of .safetensors files, and what the file of a ControlNet"
            " or LoRA is put on."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file with the sources and the options above, by their names.")
    ] = None,
    greedy_soup: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Choose a soup of this run's stages, and of SOURCEs, by validation loss."),
    ] = None,
    search: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="Choose their weights by validation loss.")
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Merges that --search tries.")] = 40,
) -> None:
    """Merge models, in the memory of one tensor."""
    with one_line_errors():
        from tools.merge.command import merge_and_tell

        merge_and_tell(
            out,
            sources or (),
            flags={
                "method": method,
                "weights": weights,
                "blocks": block,
                "base": base,
                "density": density,
                "scale": scale,
                "seed": seed,
                "part": part,
                "dtype": dtype,
                "single_file_config": single_file_config,
            },
            recipe_file=recipe,
            greedy_soup_config=greedy_soup,
            search_config=search,
            budget=budget,
        )


def export(
    source: Annotated[
        str, typer.Argument(help="A model's folder, a stage's, a built-in name, a hub id, or a .safetensors file.")
    ],
    out: Annotated[Path, typer.Argument(help="What to write: a folder, NAME.safetensors, or NAME.zip for a bundle.")],
    to: Annotated[Literal["diffusers", "single-file", "onnx"], typer.Option(help="onnx: a bundle with its sampler.")],
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None, typer.Option(help="Weights of a bundle. Default: fp32.")
    ] = None,
    single_file_config: Annotated[
        str | None, typer.Option(help="Diffusers folder with the architecture of a source that is a single file.")
    ] = None,
) -> None:
    """Write a model in a form that other programs read."""
    with one_line_errors():
        # To save a text encoder transformers imports DeepSpeed, which says on stdout that it looked for a GPU in vain.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from tools.export.export import export as export_model

        print(export_model(source, out, to, precision=precision, single_file_config=single_file_config))


def sample(context: typer.Context) -> None:
    """Draw images from an exported bundle, or serve a page that does."""
    from sampler.command import main as run_sampler

    sys.exit(run_sampler(context.args))
