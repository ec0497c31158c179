"""The front door: `sonoshard COMMAND`. Heavy imports happen inside the commands, so that help answers at once."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.quiet import quiet_libraries

app = typer.Typer(
    name="sonoshard",
    help="Fine-tune Stable Diffusion on ultrasound images, in little memory, on one machine or many.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(help="YAML file, such as configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as optimizer.lr=2e-5.")
]


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything. Default: runs/demo, or runs/demo-quick.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and steps: about six minutes.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to train with.")] = 2,
) -> None:
    """Run the whole main job on built-in data; ends with images."""
    with one_line_errors():
        from tools.demo import run_demo

        default = Path("runs/demo-quick" if quick else "runs/demo")
        sys.exit(run_demo(out or default, quick=quick, num_ranks=nproc))


@app.command()
def databases(
    name: Annotated[
        str | None, typer.Argument(metavar="KIND", help="A kind, such as busi. Default: a list of all.")
    ] = None,
) -> None:
    """List the databases that can be read; for one: layout, classes, licence, known faults."""
    with one_line_errors():
        from launch.databases import describe, listing

        print(describe(name) if name else listing())


@app.command()
def prepare(config: Config, overrides: Overrides = None) -> None:
    """Scan databases: images, masks, prompts, splits by patient."""
    with one_line_errors():
        from launch.config import load_config
        from launch.prepare import prepare_databases

        settings = load_config(config, overrides or ())
        print(prepare_databases(settings))
        print(f"look at {settings.quality_report}")


@app.command()
def encode(
    config: Config,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes to start here. Default: 1, or what srun started.")
    ] = None,
    part: Annotated[
        int | None, typer.Option(min=0, help="Which part to encode, from 0. Default: by the place in a job array.")
    ] = None,
    parts: Annotated[int | None, typer.Option(min=1, help="How many parts there are, encoded at any time.")] = None,
) -> None:
    """Encode what was prepared into latent shards; may be interrupted."""
    with one_line_errors():
        from launch.config import load_config
        from launch.parts import part_of_job
        from launch.spawn import run_ranks, world_size_of_launcher

        settings = load_config(config, overrides or ())
        own, num_parts = part_of_job(part, parts, os.environ)
        arguments = [str(config), str(own), str(num_parts), *(overrides or ())]
        if nproc is not None and nproc > 1:
            sys.exit(run_ranks(["-m", "launch.encode_process", *arguments], nproc))
        if world_size_of_launcher() and nproc is None:
            from launch.encode_process import main as run_part

            run_part(arguments)
        from launch.prepare import encode_databases

        print(encode_databases(settings, own, num_parts))


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks to start here. Default: 1, or what srun started.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything that can be checked, and stop.")] = False,
) -> None:
    """Train all stages, each going on where it stopped."""
    with one_line_errors():
        from launch.config import load_config
        from launch.spawn import run_ranks, world_size_of_launcher

        arguments = [str(config), *(overrides or ())]
        settings = load_config(config, overrides or ())
        num_started = world_size_of_launcher()
        if num_started and nproc is None and not dry_run:
            from launch.rank_process import main as run_rank

            run_rank(arguments)
        from launch.prepare import check_run

        print(check_run(settings, world_size=nproc or num_started or 1))
        if dry_run:
            return
        if all(settings.is_finished(stage) for stage in settings.stages):
            from launch.forgetting_report import tell_matrix

            tell_matrix(settings)
            return
        sys.exit(run_ranks(["-m", "launch.rank_process", *arguments], nproc or 1))


@app.command()
def submit(
    config: Config,
    overrides: Overrides = None,
    cluster: Annotated[
        str, typer.Option(help="slurm, or this machine: local in the background, debug here.")
    ] = "slurm",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of a job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="As many ranks a node. 0: one, on the CPU.")] = 1,
    cpus_per_rank: Annotated[int, typer.Option(min=1, help="CPU cores of each rank.")] = 1,
    time_min: Annotated[int, typer.Option(min=1, help="Time limit in minutes; a job goes on after it.")] = 24 * 60,
    partition: Annotated[str | None, typer.Option(help="Partition. Default: the cluster's.")] = None,
    chain: Annotated[bool, typer.Option("--chain", help="A job for each stage, each after the one before.")] = False,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another option of sbatch, such as account=lab.")
    ] = None,
) -> None:
    """Submit training to SLURM through submitit."""
    with one_line_errors():
        from launch.submit import submit_and_tell

        submit_and_tell(
            config,
            overrides or (),
            cluster=cluster,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            cpus_per_rank=cpus_per_rank,
            time_min=time_min,
            partition=partition,
            chain=chain,
            sbatch=sbatch or (),
        )


@app.command()
def status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, such as runs/busi.")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until Ctrl-C.")] = False,
) -> None:
    """Tell how far runs are: step, loss, time left, checkpoint, job."""
    with one_line_errors():
        from launch.status_table import print_status

        print_status(runs, watch=watch)


@app.command()
def memory(
    config: Config,
    overrides: Overrides = None,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks that share the training state.")] = 1,
) -> None:
    """Predict the memory of each rank by kind, before a GPU is asked for."""
    with one_line_errors():
        from launch.config import load_config
        from launch.memory import print_prediction

        print_prediction(load_config(config, overrides or ()), world_size)


@app.command()
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


@app.command()
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
        str | None, typer.Option(help="Folder or hub id that gives the architecture of .safetensors files.")
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


@app.command()
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
        str | None, typer.Option(help="Stage that draws the images. Default: the last finished; for readers, of SD.")
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

            evaluate_run(settings, num_images or 256, stage_name=stage, images=images, features=features).print()


@app.command()
def downstream(
    config: Config,
    experiment: Annotated[
        Literal["classification", "generated-only", "segmentation"],
        typer.Argument(help="What the images are to be of use for."),
    ],
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option(help="Stage that draws the images. Default: the last finished that can.")
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
        print(f"figures  {result_path(settings, experiment)}")


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sample(context: typer.Context) -> None:
    """Draw images from an exported bundle, or serve a page that does."""
    from sampler.command import main as run_sampler

    sys.exit(run_sampler(context.args))


@app.command()
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


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Folders: shards, checkpoints, stages, runs, or above them.")],
) -> None:
    """Check the hashes of shards and checkpoints; 1 if any is damaged."""
    with one_line_errors():
        from tools.verify import verify as verify_paths

        sys.exit(verify_paths(paths))


@app.command()
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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit code 2."""
    from launch.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, USER_ERRORS

    try:
        yield
    except USER_ERRORS as error:
        print(f"sonoshard: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"sonoshard: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("sonoshard: interrupted; what is finished is kept, run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def show_note(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning as one line, without the place in the code that gave it."""
    print(f"sonoshard: note: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    quiet_libraries()
    warnings.showwarning = show_note
    # In a log file, too, a line stands before what came after it on stderr or from the ranks.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    app()


if __name__ == "__main__":
    main()
