"""The whole main job on built-in data: prepare, encode, a curriculum on several ranks, a page of what came of it."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.images import decode
from data.manifest import Manifest, ManifestRow
from distributed.stop_request import handlers_put_back
from launch.config import RunConfig
from launch.dry_run import check_run
from launch.prepare import encode_databases, prepare_databases
from launch.spawn import run_ranks
from models.base import ModelConfig
from tools.demo.contact_sheet import SheetRow, contact_sheet
from tools.demo.exported import EXPORTED, SAMPLED, export_all
from tools.demo.judgement import judged, worth
from tools.demo.later import later_steps
from tools.demo.merged import MERGED, merged_stages
from tools.demo.page import write_page
from tools.demo.plan import CONFIG, demo_config, demo_overrides, say

# Columns of the sheet by label: the first held-out images of each, in the manifest's order.
COLUMNS = {"normal": 2, "benign": 3, "malignant": 3}


def run_demo(out: Path, *, quick: bool, num_ranks: int) -> int:
    """Run everything in `out`, going on where an earlier run stopped, and return the exit code."""
    began = time.perf_counter()
    config = demo_config(out, quick=quick)
    first, control = config.stages[0], config.stages[-1]
    say(1, "simulate and prepare: images, masks, prompts, splits by patient")
    print(prepare_databases(config))
    say(2, "encode: VAE and text encoder run once, over every image and prompt")
    print(encode_databases(config))
    say(3, "draw before fine-tuning: the built-in model has never seen this scanner")
    columns = _columns(Manifest.read(config.manifest_path).rows)
    before = _drawn(config, config.model, columns, "before")
    say(4, f"train on {num_ranks} ranks; TensorBoard shows it live: tensorboard --logdir {out}/tensorboard")
    print(check_run(config, num_ranks))
    if not all(config.is_finished(stage) for stage in config.stages):
        arguments = ["-m", "launch.rank_process", str(CONFIG), *demo_overrides(out, quick=quick)]
        with handlers_put_back():  # Ctrl-C is for the ranks meanwhile
            code = run_ranks(arguments, num_ranks)
        if code != 0:
            return code
    say(5, "draw after fine-tuning, from the same noise")
    after = _drawn(config, ModelConfig(base=str(config.stage_model(first))), columns, "after")
    sheet = config.run / "contact_sheet.png"
    contact_sheet(
        [
            SheetRow("held-out images", "of the second scanner", np.stack([_picture(row) for row in columns])),
            SheetRow("before fine-tuning", "built-in model", before),
            SheetRow("after fine-tuning", f"{first.steps} steps, same noise", after),
        ],
        [row.prompts[0].removeprefix("simulated breast ultrasound, ") for row in columns],
        "Simulated breast ultrasound: a model of one scanner learns the images of another",
        "All images are simulated or generated, and no clinical evidence. Columns: the first held-out images of each"
        " label; noise seeds are the column numbers.",
    ).save(sheet)
    with later_steps(out, quick=quick) as later:
        say(6, "draw from masks, and judge: are they realistic, do they follow the mask, are they copies?")
        print("Steps 7 to 9 are under way beside it, and are told after it.")
        report = judged(config, control, quick=quick)
        code = later.tell()
    if code != 0:
        return code
    # What is found already is not made again.
    experiments, merged, exported = worth(config, quick=quick), merged_stages(config), export_all(config, control)
    page = write_page(config, merged, report, experiments)
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    print(
        f"\ndone in {minutes} min {seconds} s\n"
        f"  look at          {page}\n"
        f"  contact sheet    {sheet}\n"
        f"  forgetting       {config.run / 'forgetting.png'}\n"
        f"  evaluation       {report.page}\n"
        f"  models           {config.run / 'stages'}/*/model   (diffusers folders)\n"
        f"  merged model     {config.run / MERGED}\n"
        f"  exported         {config.run / EXPORTED}   (diffusers, single file, ONNX bundle)\n"
        f"  labelled set     {config.run / SAMPLED}\n"
        f"  TensorBoard      tensorboard --logdir {config.run / 'tensorboard'}\n"
        f"  configuration    {config.run / 'config.yaml'}\n"
        "draw in the browser, from a prompt and a mask:\n"
        f"  sonoshard sample {exported.bundle} --serve\n"
        "the next run, on the same shards:\n"
        f"  sonoshard train {config.run / 'config.yaml'} run=runs/next shards={config.shards_path} optimizer.lr=2e-4"
    )
    return 0


def _columns(rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    held_out = [row for row in rows if row.split == "test"]
    return [row for label, count in COLUMNS.items() for row in [r for r in held_out if r.label == label][:count]]


def _drawn(config: RunConfig, model: ModelConfig, columns: Sequence[ManifestRow], when: str) -> NDArray[np.uint8]:
    """Return one generated image a column, uint8 [N, H, W, 3]: its prompt, the noise of its number.

    They are written to RUN/generated/WHEN too.
    """
    import torch

    from models.sampling import sample
    from models.stable_diffusion import load_pipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_pipeline(model, device, torch.float32)
    prompts = [row.prompts[0] for row in columns]
    images = sample(pipeline, prompts, list(range(len(prompts))), config.preview.sampling)
    folder = config.run / "generated" / when
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return images


def _picture(row: ManifestRow) -> NDArray[np.uint8]:
    return np.asarray(decode(row.image)[0].convert("RGB"))
