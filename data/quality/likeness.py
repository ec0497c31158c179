"""Near-duplicates: pictures alike but for size, compression, brightness, marks or a mirror, found by perceptual hashes.

Source of the hash: pHash, the signs of the lowest frequencies of the cosine transform (Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions"), here by the library imagehash.
"""

from collections.abc import Iterator
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


def _distances(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.bitwise_count(a ^ b[None]).sum(axis=-1, dtype=np.int64)


def _hash(grey: Image.Image) -> NDArray[np.uint64]:
    from imagehash import phash

    bits = phash(grey, hash_size=HASH_SIDE).hash.ravel()
    return np.packbits(bits).view(">u8").astype(np.uint64)
