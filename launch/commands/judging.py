"""Commands that judge: images, files, and the machine."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.commands.arguments import Config, Overrides
from launch.terminal import one_line_errors


def evaluate(
    config: Config,
    overrides: Overrides = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Images to judge, 256 by default; with --every-stage: of each stage and database, 32 by default; of a"
            " reader study: real ones, and as many generated, 40 by default.",
        ),
    ] = None,
    reader_study: Annotated[
        bool, typer.Option("--reader-study", help="Write a page that asks people which images are real, and its key.")
    ] = False,
    every_stage: Annotated[
        bool, typer.Option("--every-stage", help="Instead of a report: a table of all stages by statistics.")
    ] = False,
    stage: Annotated[
        str | None,
        typer.Option(
            help="Stage that draws the images. Default: the last with a model; with --reader-study, the last diffusion"
            " stage."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images made elsewhere, to judge or show instead of a stage's.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TorchScript network to compare by. It is executed.")
    ] = None,
    score: Annotated[
        list[Path] | None, typer.Option(metavar="CSV", help="A reader's answers, by the study's key; repeatable.")
    ] = None,
) -> None:
    """Compare generated with real images: a report of one stage, a table of all, or by readers."""
    with one_line_errors():
        from launch.config import load_config
        from launch.errors import ConfigError

        settings = load_config(config, overrides or ())
        if stage and images:
            raise ConfigError("--stage draws images and --images takes those of a folder: give one of them")
        kinds = {"--reader-study": reader_study, "--score": bool(score), "--every-stage": every_stage}
        if len(given := [name for name, is_given in kinds.items() if is_given]) > 1:
            raise ConfigError(f"{' and '.join(given)} do different things: give one of them")
        if (score or every_stage) and (stage or images):
            raise ConfigError(f"{given[0]} takes neither --stage nor --images: leave them out")
        if given and features:
            raise ConfigError(f"--features is for the report, which {given[0]} does not make: leave one of them out")
        if score and num_images is not None:
            raise ConfigError("--score takes all images of the study: leave out --num-images")
        if reader_study:
            from evaluation.reader_study.study import KEY_FILE, make_study

            page = make_study(settings, num_images or 40, stage_name=stage, images=images)
            print(f"for the readers: {page}\nfor you alone, the key: {page.parent / KEY_FILE}")
        elif score:
            from evaluation.reader_study.scores import SCORES_FILE, print_scores, score_study, write_scores
            from evaluation.reader_study.study import FOLDER, KEY_FILE

            folder = settings.run / FOLDER
            scores = score_study(folder / KEY_FILE, score, settings.seed)
            write_scores(folder / SCORES_FILE, scores)
            print_scores(scores)
        elif every_stage:
            from evaluation.realism_report import print_realism
            from evaluation.stage_realism import stage_realism

            print_realism(stage_realism(settings, num_images or 32))
        else:
            from evaluation.report import evaluate_run

            evaluate_run(settings, num_images, stage_name=stage, images=images, features=features).print()


def downstream(
    config: Config,
    experiment: Annotated[
        Literal["classification", "generated-only", "segmentation"],
        typer.Argument(help="What the images are to be of use for."),
    ],
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option(help="Stage that draws the images. Default: the last with a model that can.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images with a labels.csv, instead; with generated-only: that the stage's model drew."
        ),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(min=2, help="Of each database. Default: as many as it has training images.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks of each kind.")] = 6,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of every network. Default: 300, of a segmenter 350.")
    ] = None,
) -> None:
    """Tell whether generated images help to train a classifier or a segmenter."""
    with one_line_errors():
        from evaluation.downstream.experiment import run_experiment
        from evaluation.downstream.result import result_path
        from evaluation.downstream.table import print_downstream
        from launch.config import load_config

        settings = load_config(config, overrides or ())
        result = run_experiment(
            settings,
            experiment,
            stage_name=stage,
            images=images,
            num_images=num_images,
            num_seeds=seeds,
            steps=steps,
        )
        print_downstream(result)
        print(f"figures  {result_path(settings, experiment, result.images_of)}")


def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders: shards, checkpoints, models, bundles, runs, or above them.")
    ],
) -> None:
    """Check the hashes of shards, checkpoints and bundles, and open models; 1 if any is damaged."""
    with one_line_errors():
        from tools.verify import verify as verify_paths

        sys.exit(verify_paths(paths))


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file whose base model, databases and shards are looked for, too.")
    ] = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder whose disk is measured. Default: the configuration's, or runs.")
    ] = None,
) -> None:
    """Tell what this machine has and lacks; 1 if something must be mended."""
    from launch.own_packages import packages_from_elsewhere, tell_elsewhere

    # Before anything of theirs is imported, this command's own code included.
    if elsewhere := packages_from_elsewhere():
        print(tell_elsewhere(elsewhere))
        sys.exit(1)
    with one_line_errors():
        from tools.doctor.examination import examine

        sys.exit(examine(config, overrides or (), run))
