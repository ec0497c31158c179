"""Which block of a UNet or ControlNet a tensor belongs to, by its diffusers name."""

from collections.abc import Mapping, Sequence

# The first part of a tensor's name, and the block. What goes into the time's embedding, and out of the last block.
_BLOCKS = {
    "mid_block": "mid",
    "time_embedding": "time",
    "add_embedding": "time",
    "conv_in": "conv_in",
    "conv_norm_out": "conv_out",
    "conv_out": "conv_out",
    "controlnet_cond_embedding": "hint",
    "controlnet_down_blocks": "zero",
    "controlnet_mid_block": "zero",
}
ATTENTION = "attention"


def block_of(name: str) -> str:
    """Return the block: down.0 and on, mid, up.0 and on, time, conv_in, conv_out; of a ControlNet also hint, zero."""
    first, *rest = name.split(".")
    if first in ("down_blocks", "up_blocks"):
        return f"{first.removesuffix('_blocks')}.{rest[0]}"
    return _BLOCKS.get(first, first)


def names_for(name: str) -> list[str]:
    """Return the names under which a tensor's weights may stand, the most exact one first."""
    block = block_of(name)
    is_attention = "attentions" in name.split(".")
    side = block.split(".")[0]
    found = [f"{block}.{ATTENTION}", f"{side}.{ATTENTION}", ATTENTION] if is_attention else []
    return list(dict.fromkeys([*found, block, side]))


def block_weights(name: str, blocks: Mapping[str, Sequence[float]], elsewhere: Sequence[float]) -> Sequence[float]:
    """Return the weights of a tensor: those of its most exact name in `blocks`, or those of `elsewhere`."""
    return next((blocks[known] for known in names_for(name) if known in blocks), elsewhere)
