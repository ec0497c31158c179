"""What comes before training: scanning databases, encoding them, and checking all that can be checked without a GPU."""

from data.encode import EncodeReport, encode
from data.manifest import PrepareReport, prepare
from data.shards import ShardSet
from launch.config import RunConfig
from launch.progress import Progress
from models.stable_diffusion import encoder_fingerprint, load_encoder, resolution_of


def prepare_databases(config: RunConfig) -> PrepareReport:
    """Write the manifest of all databases of the run and return what was found."""
    return prepare(config.databases, config.prepare, config.manifest_path, config.run / "images")


def encode_databases(config: RunConfig) -> EncodeReport:
    """Encode the manifest into latent shards with the base model's VAE and text encoder; both leave memory after."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(config.model, device, torch.float32)
    progress = Progress("encode", "image")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.show(done)

    report = encode(config.manifest_path, encoder, config.encode, resolution_of(config.model), config.shards_path, show)
    progress.close()
    return report


def open_shards(config: RunConfig) -> ShardSet:
    """Return the run's latent shards. Raises: DataError unless this run's base model at its resolution made them."""
    expected = {**encoder_fingerprint(config.model), "resolution": str(resolution_of(config.model))}
    return ShardSet.open(config.shards_path, expected)


def check_run(config: RunConfig, world_size: int) -> str:
    """Check base model, shards, splits and batch for `world_size` ranks; return what will be trained, for a person.

    Raises: the error of whatever is wrong, before a GPU is asked for.
    """
    config.batch.check_ranks(world_size)
    shards = open_shards(config)
    lines = []
    for stage in config.stages:
        counts = {name: len(shards.entries(name, "train")) for name in stage.databases}
        samples = stage.steps * config.batch.global_size
        epochs = samples / sum(counts.values())
        sources = ", ".join(f"{name} ({count} images)" for name, count in counts.items())
        done = ", finished" if config.is_finished(stage) else ""
        lines.append(f"stage {stage.name}: {stage.steps} steps on {sources}, {epochs:.1f} epochs{done}")
    accumulation = config.batch.global_size // (config.batch.micro_size * world_size)
    lines.append(
        f"batch {config.batch.global_size} = {world_size} rank{'s' * (world_size > 1)} x micro batch"
        f" {config.batch.micro_size} x {accumulation} accumulated; ZeRO stage {config.zero.stage},"
        f" {config.optimizer.name}"
    )
    return "\n".join(lines)
