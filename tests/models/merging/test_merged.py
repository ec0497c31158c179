"""Whole networks merged piece by piece, against formulas on whole tensors; what is refused; what is written."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ModelError
from models.merging import merged as merged_module
from models.merging.blocks import block_of, names_for
from models.merging.formulas import Trim, elected_mean, num_kept, slerp_shares
from models.merging.merged import Merged
from models.merging.recipe import make_recipe
from models.merging.source import FileSource
from models.merging.writer import write_pieces

State = dict[str, Tensor]

# float32 sums of a few products.
RTOL, ATOL = 1e-5, 1e-6
SHAPES = {
    "conv_in.weight": (8, 4, 3, 3),
    "down_blocks.0.attentions.0.proj_in.weight": (16, 8),
    "down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3),
    "mid_block.resnets.0.norm1.bias": (7,),
    "up_blocks.1.attentions.0.norm.weight": (1,),
}


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


STATES = [random_state(seed) for seed in range(4)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of several pieces, the last of them shorter."""
    monkeypatch.setattr(merged_module, "PIECE_ELEMENTS", 50)


def source(folder: Path, name: str, state: State) -> FileSource:
    save_file(state, folder / f"{name}.safetensors")
    return FileSource(name, [folder / f"{name}.safetensors"])


def merge(folder: Path, states: list[State], base: State | None = None, **settings: Any) -> State:
    """Return what a file of the merge holds."""
    names = [f"model-{number}" for number in range(len(states))]
    recipe = make_recipe(sources=names, **({"base": "base"} if base else {}), **settings)
    sources = [source(folder, name, state) for name, state in zip(names, states, strict=True)]
    merged = Merged(recipe, sources, source(folder, "base", base) if base else None)
    write_pieces(folder / "out.safetensors", merged.tensors, merged.all_pieces(), {})
    written: State = load_file(folder / "out.safetensors")
    return written


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=RTOL, atol=ATOL)


def test_weighted_and_soup_are_means_of_every_tensor(tmp_path: Path) -> None:
    found = merge(tmp_path, STATES[:3], method="weighted", weights=[3, 1, 4])
    one, two, three = STATES[:3]
    # To the bit what is computed with all models in memory.
    assert all(
        torch.equal(found[name], (one[name] * (3 / 8)).add(two[name], alpha=1 / 8).add(three[name], alpha=4 / 8))
        for name in SHAPES
    )
    plain = merge(tmp_path, STATES[:3], method="soup")
    assert_same(plain, {name: torch.stack([state[name] for state in STATES[:3]]).mean(0) for name in SHAPES})


def test_slerp_turns_every_tensor_by_its_own_angle(tmp_path: Path) -> None:
    one, two = STATES[:2]
    expected = {}
    for name in SHAPES:
        a, b = one[name].double().flatten(), two[name].double().flatten()
        first, second = slerp_shares(float(a @ b), float(a @ a), float(b @ b), 0.75)
        expected[name] = (first * one[name] + second * two[name]).float()
    assert_same(merge(tmp_path, [one, two], method="slerp", weights=[1, 3]), expected)
    ends = [merge(tmp_path, [one, two], method="slerp", weights=weights) for weights in ([1, 0], [0, 1])]
    for end, state in zip(ends, (one, two), strict=True):
        assert all(torch.equal(end[name], state[name]) for name in SHAPES)


def test_differences_to_a_base_are_added(tmp_path: Path) -> None:
    one, two, three, base = STATES
    found = merge(tmp_path, [one, two, three], base, method="add-difference", weights=[0.5, -1.0])
    assert_same(found, {n: one[n] + 0.5 * (two[n] - base[n]) - (three[n] - base[n]) for n in SHAPES})
    same = merge(tmp_path, [one, base], base, method="add-difference")
    assert all(torch.equal(same[name], one[name]) for name in SHAPES)


def trimmed_whole(state: State, base: State, name: str, density: float) -> Tensor:
    task = (state[name] - base[name]).flatten()
    return Trim(task.abs(), num_kept(task.numel(), density))(task)


def test_ties_trims_elects_and_averages_every_tensor(tmp_path: Path) -> None:
    *states, base = STATES
    found = merge(tmp_path, states, base, method="ties", density=0.3, scale=0.7, weights=[1, 1, 2])
    expected = {}
    for name, shape in SHAPES.items():
        tasks = [trimmed_whole(state, base, name, 0.3) for state in states]
        expected[name] = base[name] + 0.7 * elected_mean(tasks, [0.25, 0.25, 0.5]).view(shape)
    assert_same(found, expected)
    alone = merge(tmp_path, states[:1], base, method="ties")
    changed = {name: int((alone[name] != base[name]).sum()) for name in SHAPES}
    assert changed == {name: num_kept(value.numel(), 0.2) for name, value in base.items()}, "0.2 are kept of one source"
    whole = merge(tmp_path, states[:1], base, method="ties", density=1.0)
    assert_same(whole, states[0])


def plain_drop(task: Tensor, density: float, *keys: str) -> Tensor:
    """The paper's formula in numpy, on the random numbers of the keys."""
    seed = int.from_bytes(hashlib.blake2b("\n".join(keys).encode(), digest_size=16).digest())
    drawn = np.random.Generator(np.random.PCG64(seed)).random(task.numel(), dtype=np.float32).reshape(task.shape)
    return torch.from_numpy(np.where(drawn < density, task.numpy() / density, 0))


def test_dare_drops_by_seed_model_and_tensor(tmp_path: Path) -> None:
    *states, base = STATES
    shares = [0.25, 0.25, 0.5]
    found = merge(tmp_path, states, base, method="dare", density=0.4, scale=0.7, seed=5, weights=[1, 1, 2])
    expected = {}
    for name in SHAPES:
        tasks = [plain_drop(state[name] - base[name], 0.4, "5", str(n), name) for n, state in enumerate(states)]
        changes = sum(share * task for share, task in zip(shares, tasks, strict=True))
        expected[name] = base[name] + 0.7 * changes
    assert_same(found, expected)
    again = merge(tmp_path, states, base, method="dare", density=0.4, scale=0.7, seed=5, weights=[1, 1, 2])
    assert all(torch.equal(again[name], found[name]) for name in SHAPES)
    other = merge(tmp_path, states, base, method="dare", density=0.4, scale=0.7, seed=6, weights=[1, 1, 2])
    assert not torch.equal(other["conv_in.weight"], found["conv_in.weight"])


def test_blocks_have_weights_of_their_own(tmp_path: Path) -> None:
    one, two = STATES[:2]
    blocks = {"down": [1, 0], "down.0.attention": [0, 1], "attention": [1, 3], "mid": [3, 1]}
    found = merge(tmp_path, [one, two], method="blocks", blocks=blocks, weights=[1, 1])
    share_of_two = dict(zip(SHAPES, (0.5, 1, 0, 0.25, 0.75), strict=True))
    assert_same(found, {name: one[name].lerp(two[name], share) for name, share in share_of_two.items()})


def test_every_tensor_of_a_unet_is_in_a_known_block() -> None:
    folder = Path(merged_module.__file__).parents[1] / "tiny" / "unet"
    blocks = {block_of(name) for name in load_file(folder / "diffusion_pytorch_model.safetensors")}
    sides = {f"{side}.{level}" for side in ("down", "up") for level in range(3)}
    assert blocks == sides | {"mid", "time", "conv_in", "conv_out"}
    assert names_for("up_blocks.1.attentions.0.norm.weight")[:2] == ["up.1.attention", "up.attention"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_of_float32_and_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    halves = [random_state(seed, dtype) for seed in range(3)]
    for name, value in merge(tmp_path, halves, method="soup").items():
        assert value.dtype == dtype
        expected = torch.stack([state[name].double() for state in halves]).mean(0)
        # Half a unit in its last place; sums of the dtype itself would be rounded three times.
        torch.testing.assert_close(value.double(), expected, rtol=0.505 * torch.finfo(dtype).eps, atol=1e-7)


def test_dtypes_are_kept_or_asked_for(tmp_path: Path) -> None:
    halves = [random_state(seed, torch.float16) for seed in range(3)]
    mixed = merge(tmp_path, [halves[0], STATES[1]], method="soup", dtype="bf16")
    assert {value.dtype for value in mixed.values()} == {torch.bfloat16}
    odd = {**halves[0], "conv_in.weight": halves[0]["conv_in.weight"].float()}
    kept = merge(tmp_path, [odd, odd], method="soup")
    assert {name: value.dtype for name, value in kept.items()} == {name: value.dtype for name, value in odd.items()}
    merge(tmp_path, STATES[:1], halves[0], method="ties")  # a base decides nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a": torch.zeros(1), "b": torch.zeros(1)},
            "model-0 has no a, b, which model-1 has: they have different architectures",
        ),
        ({"mid_block.resnets.0.norm1.bias": None}, "model-1 has no mid_block.resnets.0.norm1.bias, which model-0 has"),
        (
            {name: torch.zeros(2) for name in SHAPES},
            "model-1 and model-0 differ in the shape of conv_in.weight, down_blocks.0.attentions.0.proj_in.weight,"
            " down_blocks.0.resnets.0.conv1.weight and 2 more ([2] and [8, 4, 3, 3] of conv_in.weight): they have",
        ),
        (
            {"conv_in.weight": torch.zeros(8, 4, 3, 3).half()},
            "differ in the dtype of conv_in.weight (F16 and F32 of conv_in.weight): say which one is to be written",
        ),
    ],
)
def test_strangers_are_refused_with_the_names(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    other = {name: value for name, value in {**STATES[1], **change}.items() if value is not None}
    with pytest.raises(ModelError) as refused:
        merge(tmp_path, [STATES[0], other], method="weighted")
    assert message in str(refused.value)
    assert not (tmp_path / "out.safetensors").exists()
    if "dtype" not in message:
        with pytest.raises(ModelError):
            merge(tmp_path, [STATES[0], STATES[0]], other, method="ties")


def test_integers_and_unknown_blocks_are_refused(tmp_path: Path) -> None:
    counts = {**STATES[0], "count": torch.zeros(1, dtype=torch.int64)}
    with pytest.raises(ModelError, match="model-0 has count of dtype I64, which is not merged"):
        merge(tmp_path, [counts, counts], method="soup")
    for dtype, name in ((torch.int64, "I64"), (torch.float8_e4m3fn, "F8_E4M3")):
        strange = {**STATES[1], "conv_in.weight": STATES[1]["conv_in.weight"].to(dtype)}
        with pytest.raises(ModelError, match=f"model-1 has conv_in.weight of dtype {name}, which is not merged"):
            merge(tmp_path, [STATES[0], strange], method="soup", dtype="fp32")
        with pytest.raises(ModelError, match=f"base has conv_in.weight of dtype {name}, which is not merged"):
            merge(tmp_path, STATES[:1], strange, method="dare")
    with pytest.raises(ModelError, match=r"no tensor is in block down\.7 \(there are attention, conv_in, down, "):
        merge(tmp_path, STATES[:2], method="blocks", blocks={"down.7": [1, 0]})


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: content + b"1", lambda _: b"\xff" * 9]
)
def test_a_file_of_another_size_is_refused(tmp_path: Path, damage: Any) -> None:
    source(tmp_path, "whole", STATES[0])
    file = tmp_path / "whole.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=r"whole.safetensors .*copy it again"):
        FileSource("whole", [file])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mean"}, "method 'mean' is unknown (known: weighted, soup, blocks, slerp, add-difference, ties,"),
        ({"weights": [1]}, "weights has 1 numbers, needed 2: one for each source"),
        ({"weights": [1, -1]}, "weights=1,-1: needed numbers of at least 0, not all of them 0"),
        ({"weights": [0, 0]}, "weights=0,0: needed numbers of at least 0"),
        ({"weights": [1, float("inf")]}, "weights=1,inf: needed numbers of at least 0"),
        ({"method": "soup", "weights": [1, 2]}, "method soup is the plain mean: leave weights out"),
        ({"method": "slerp", "sources": ["a"]}, "method slerp needs two sources, got 1"),
        ({"method": "slerp", "sources": ["a", "b", "c"]}, "method slerp needs two sources, got 3"),
        ({"method": "add-difference", "base": "c", "sources": ["a"]}, "method add-difference needs at least two"),
        ({"method": "add-difference", "base": "c", "weights": [1, 1]}, "needed 1: one for each source after the first"),
        ({"method": "ties"}, "method ties needs base, the model that the sources were made from"),
        ({"method": "soup", "base": "c"}, "base is for method add-difference, ties, dare alone, and this is soup"),
        ({"seed": 1}, "seed is for method dare alone, and this is weighted: leave it out"),
        ({"density": 0.5}, "density is for method ties, dare alone"),
        ({"method": "ties", "base": "c", "density": 1.5}, "density=1.5: "),
        ({"method": "blocks"}, "method blocks needs weights of a block, such as --block mid=0.2,0.8"),
        ({"method": "blocks", "blocks": {"mid": [1]}}, "mid has 1 numbers, needed 2"),
        ({"part": "vae"}, "part='vae': "),
        ({"wieghts": [1, 1]}, "unknown key wieghts of a merge (known here: method, sources, weights,"),
        ({"sources": []}, "sources=[]: "),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as refused:
        make_recipe(**{"sources": ["a", "b"], **settings})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_written_file_is_the_librarys_and_is_hashed_as_it_is_written(tmp_path: Path) -> None:
    merged = Merged(make_recipe(sources=["one"]), [source(tmp_path, "one", STATES[0])])
    path = tmp_path / "out.safetensors"
    digest = write_pieces(path, merged.tensors, merged.all_pieces(), {"recipe": "one"})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert FileSource("out", [path]).sha256() == digest
    assert all(torch.equal(value, STATES[0][name]) for name, value in load_file(path).items())
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["__metadata__"] == {"recipe": "one"}
    assert length % 8 == 0


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    merged = Merged(make_recipe(sources=["one"]), [source(tmp_path, "one", STATES[0])])
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"before")

    def broken() -> Any:
        yield from merged.pieces("conv_in.weight")
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_pieces(path, merged.tensors, broken(), {})
    assert {file.name for file in tmp_path.iterdir()} == {"one.safetensors", "out.safetensors"}
    assert path.read_bytes() == b"before"
