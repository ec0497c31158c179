"""Near-duplicates: pictures alike but for size, compression, brightness, marks or a mirror, found by perceptual hashes.

Source of the hash: pHash, the signs of the lowest frequencies of the cosine transform (Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions"), here by the library imagehash.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Frequencies a side; the hash has as many bits as their square. With 64 bits, unlike cardiac images differ in 2 bits.
HASH_SIDE = 16
WORDS = HASH_SIDE**2 // 64
# Rows compared with all others at a time: bounds memory, not the result.
CHUNK = 256

# N images, W words of 64 bits


@dataclass(frozen=True)
class Likeness:
    """A picture's perceptual hashes: as it is, and as its mirror image, [W] uint64 each."""

    upright: NDArray[np.uint64]
    mirrored: NDArray[np.uint64]

    @property
    def text(self) -> str:
        """The hashes as hexadecimal digits."""
        return np.concatenate((self.upright, self.mirrored)).astype(">u8").tobytes().hex()

    @classmethod
    def from_text(cls, text: str) -> "Likeness":
        """Return the hashes that `text` gave."""
        words = np.frombuffer(bytes.fromhex(text), dtype=">u8").astype(np.uint64)
        return cls(words[:WORDS], words[WORDS:])

    @classmethod
    def of(cls, picture: Image.Image) -> "Likeness":
        """Return the hashes of a picture."""
        grey = picture.convert("L")
        return cls(_hash(grey), _hash(ImageOps.mirror(grey)))


def alike_pairs(likenesses: list[Likeness], max_distance: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs (i, j), i < j, of which j or its mirror image is like i: at most `max_distance` bits differ."""
    if not likenesses:
        return
    upright_NW = np.stack([likeness.upright for likeness in likenesses])
    mirrored_NW = np.stack([likeness.mirrored for likeness in likenesses])
    for start in range(0, len(likenesses), CHUNK):
        chunk = upright_NW[start : start + CHUNK, None]
        nearest = np.minimum(_distances(chunk, upright_NW[start:]), _distances(chunk, mirrored_NW[start:]))
        for i, j in np.argwhere(nearest <= max_distance):
            if i < j:
                yield start + int(i), start + int(j)


def alike_to(hashes: Sequence[bytes], others: Sequence[bytes], max_distance: int) -> NDArray[np.bool_]:
    """Return for each image whether it, or its inner part, or a mirror image, is like one of `others`.

    Both are by their hashes as the manifest has them, in bytes; an image without any is like none.
    """
    is_alike = np.zeros(len(hashes), dtype=np.bool_)
    known = [number for number, content in enumerate(hashes) if content]
    mine_NPHW, others_MPHW = _parts([hashes[number] for number in known]), _parts([o for o in others if o])
    if not len(mine_NPHW) or not len(others_MPHW):
        return is_alike
    for start in range(0, len(known), CHUNK):
        chunk = mine_NPHW[start : start + CHUNK]
        # The upright hash of the one with both of the other, of the whole and of the inner picture.
        nearest = [
            _distances(chunk[:, part, 0, None], others_MPHW[:, part, mirror]).min(axis=1)
            for part in (0, 1)
            for mirror in (0, 1)
        ]
        is_alike[known[start : start + CHUNK]] = np.min(nearest, axis=0) <= max_distance
    return is_alike


def _parts(hashes: Sequence[bytes]) -> NDArray[np.uint64]:
    """Return the hashes, [N, 2 (whole, inner), 2 (upright, mirrored), W]."""
    return np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64).reshape(-1, 2, 2, WORDS)


def _distances(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.bitwise_count(a ^ b[None]).sum(axis=-1, dtype=np.int64)


def _hash(grey: Image.Image) -> NDArray[np.uint64]:
    from imagehash import phash

    bits = phash(grey, hash_size=HASH_SIDE).hash.ravel()
    return np.packbits(bits).view(">u8").astype(np.uint64)
