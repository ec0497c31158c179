"""Commands that make a run: from images to a trained model, here or through SLURM."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.commands.arguments import Config, Overrides
from launch.imports import uncollected_imports
from launch.terminal import one_line_errors


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything. Default: runs/demo, or runs/demo-quick.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and steps: less than half the time.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to train with.")] = 2,
) -> None:
    """Run the whole main job on built-in data; ends with images."""
    with one_line_errors():
        with uncollected_imports():
            from tools.demo.run import run_demo

        default = Path("runs/demo-quick" if quick else "runs/demo")
        sys.exit(run_demo(out or default, quick=quick, num_ranks=nproc))


def databases(
    name: Annotated[
        str | None, typer.Argument(metavar="KIND", help="A kind, such as busi. Default: a list of all.")
    ] = None,
) -> None:
    """List the databases that can be read; for one: layout, classes, licence, known faults."""
    with one_line_errors():
        from launch.databases import describe, listing

        print(describe(name) if name else listing())


def prepare(config: Config, overrides: Overrides = None) -> None:
    """Scan databases: images, masks, prompts, splits by patient."""
    with one_line_errors():
        from launch.config import load_config
        from launch.prepare import prepare_databases

        settings = load_config(config, overrides or ())
        print(prepare_databases(settings))
        print(f"look at {settings.quality_report}")


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
            from launch.encode_process import main as encode_and_exit

            encode_and_exit(arguments)
        from launch.prepare import encode_databases

        print(encode_databases(settings, own, num_parts))


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
        from launch.rank_process import main as train_and_exit
        from launch.spawn import run_ranks, world_size_of_launcher
        from launch.streams import outlive_readers

        outlive_readers()
        arguments = [str(config), *(overrides or ())]
        settings = load_config(config, overrides or ())
        num_started = world_size_of_launcher()
        if num_started and nproc is None and not dry_run:
            train_and_exit(arguments)
        import torch

        from distributed.rank import free_port, rank_variables
        from launch.dry_run import check_run

        # Where there is none, a dry run is one of a login node.
        on_gpu = torch.cuda.is_available() or (None if dry_run else False)
        print(check_run(settings, world_size=nproc or num_started or 1, on_gpu=on_gpu))
        if dry_run:
            return
        if all(settings.is_finished(stage) for stage in settings.stages):
            from launch.forgetting_report import tell_matrix

            tell_matrix(settings)
            return
        if nproc is not None and nproc > 1:
            sys.exit(run_ranks(["-m", "launch.rank_process", *arguments], nproc))
        # A single rank is this process, which has imported most of what training needs.
        os.environ.update(rank_variables(0, 1, "127.0.0.1", free_port()))
        train_and_exit(arguments)


def submit(
    config: Config,
    overrides: Overrides = None,
    cluster: Annotated[
        str, typer.Option(help="slurm, or this machine: local in the background, debug here.")
    ] = "slurm",
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of a job.")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="As many ranks per node. 0: one, on the CPU; not debug.")
    ] = 1,
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


def status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, such as runs/busi.")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until Ctrl-C.")] = False,
) -> None:
    """Tell how far runs are: step, loss, time left, checkpoint, job."""
    with one_line_errors():
        from launch.status_table import print_status

        print_status(runs, watch=watch)


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
