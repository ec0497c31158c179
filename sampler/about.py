"""What a bundle is, in words."""

from __future__ import annotations

from sampler.manifest import Manifest
from sampler.picture import GENERATED, SIMULATED
from sampler.plan import prompts_by_class


def about(manifest: Manifest) -> str:
    """Return the name, prompts, mask classes, training data and licences of a bundle."""
    values = manifest.values
    steered = "with" if manifest.has_controlnet else "without"
    lines = [
        f"{manifest.name}: {manifest.resolution}x{manifest.resolution} pixels, {values['precision']} weights, "
        f"{steered} ControlNet",
        f"manifest SHA-256 {manifest.sha256}",
        " ".join([GENERATED, *([SIMULATED] if manifest.is_simulated else [])]),
        "",
        "trained on the prompts",
    ]
    for (database, label), prompts in prompts_by_class(manifest).items():
        lines.append(f"  {label} ({database})")
        lines += [f"    {one['prompt']}" for one in prompts[:5]]
        lines += [f"    and {len(prompts) - 5} more"] if len(prompts) > 5 else []
    if manifest.palette:
        lines += ["", "classes of a mask"]
        lines += [f"  {one.number:>3} #{bytes(one.colour).hex()} {one.name}" for one in manifest.palette]
    if values["training_data"]:
        lines += ["", "training data"]
        for data in values["training_data"]:
            kind = "simulated, " if data.get("simulated") else ""
            lines.append(f"  {data['title']} ({data['database']}): {data['images']} images, {kind}{data['licence']}")
    return "\n".join(lines)


def prompt_list(manifest: Manifest, most: int) -> str:
    """Return some of the prompts of training in one line."""
    prompts = [repr(one["prompt"]) for one in manifest.values["prompts"]]
    more = f" and {len(prompts) - most} more (--about shows them)" if len(prompts) > most else ""
    return (", ".join(prompts[:most]) or "prompts that it does not name") + more
