"""What comes before training: databases become a manifest, and that latent shards."""

import torch

from data.encode import encode
from data.prepare import PrepareReport, prepare
from distributed import uncompiled  # noqa: F401 - before diffusers imports bitsandbytes, with the compiler
from launch.config import RunConfig
from launch.git import make_run_folder
from launch.progress import Progress
from models.base import resolution_of
from models.stable_diffusion import load_encoder


def prepare_databases(config: RunConfig) -> PrepareReport:
    """Write the manifest of all databases of the run and the report of what was found, and return it."""
    progress = Progress("prepare", "image")
    make_run_folder(config.run)
    report = prepare(config.databases, config.prepare, config.manifest_path, config.run / "images", progress.show)
    progress.close()
    report.write_html(config.quality_report)
    return report


def encode_databases(config: RunConfig, part: int = 0, num_parts: int = 1, process: int = 0) -> str:
    """Encode the manifest into latent shards with the base model's VAE and text encoder; both leave memory after.

    part, num_parts: of the shards of each resolution. process: of those on this machine; it picks the GPU, and the
    first one shows how far it is. Returns what was made, one line per resolution.
    """
    device = torch.device("cuda", process % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(config.model, device, torch.float32)
    lines = []
    for resolution in config.encode.resolutions or [resolution_of(config.model)]:
        progress = Progress(f"encode {resolution} px", "image")

        def show(done: int, total: int, progress: Progress = progress) -> None:
            progress.total = total
            progress.show(done)

        report = encode(
            config.manifest_path,
            encoder,
            config.encode,
            resolution,
            config.shards_path / str(resolution),
            show if process == 0 else None,
            part=part,
            num_parts=num_parts,
        )
        progress.close()
        lines.append(str(report))
    return "\n".join(lines)
