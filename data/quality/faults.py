"""From looks at all images to the faults of each, and to what must not be parted."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.quality.likeness import Likeness, alike_pairs
from data.quality.look import Look
from data.quality.rules import FLAGS_OF_DATABASES, Fault, QualityConfig


@dataclass(frozen=True)
class Remembered:
    """An image that is gone, by what is known of it. key: names it among all others. likeness: its hashes as text."""

    key: str
    sha256: str
    likeness: str


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """An image as quality sees it. patient: unique over all databases, or None. size: pixels."""

    id: str
    key: str
    label: str
    sha256: str
    patient: str | None
    size: int
    flags: tuple[str, ...]
    look: Look

    @property
    def likeness(self) -> str:
        """Its hashes as text."""
        return self.look.likeness


@dataclass(frozen=True)
class Faulty:
    """What is wrong with an image.

    detail: in words. others: ids of the images that it is like. is_best: of them and itself, it is the one to keep.
    """

    fault: Fault
    detail: str
    others: tuple[str, ...] = ()
    is_best: bool = False


@dataclass(frozen=True)
class Findings:
    """faults: of each image that has some, by id. groups: key -> name of the group of images alike, if it has any."""

    faults: Mapping[str, Sequence[Faulty]]
    groups: Mapping[str, str]


def find_faults(images: Sequence[Inspected], config: QualityConfig, gone: Sequence[Remembered] = ()) -> Findings:
    """Return what is wrong with `images`, and which of them and of those that are gone are alike."""
    alone = {image.id: _faults_alone(image, config) for image in images}
    # What a rule leaves out for its own sake is no copy to keep.
    is_dropped = {
        id_: any(config.rules.action(faulty.fault) == "drop" for faulty in faults) for id_, faults in alone.items()
    }
    copies: dict[str, list[Faulty]] = defaultdict(list)
    groups: dict[str, str] = {}
    for members in _groups([*images, *gone], config.near_duplicate_bits):
        name = min(member.sha256 for member in members)
        groups.update({member.key: name for member in members})
        present = [member for member in members if isinstance(member, Inspected)]
        present.sort(key=lambda image: (is_dropped[image.id], *_rank(image)))
        for member in present:
            copies[member.id] += _faults_of_copies(member, present)
    faults = {id_: [*copies[id_], *of_itself] for id_, of_itself in alone.items()}
    return Findings({id_: found for id_, found in faults.items() if found}, groups)


def _groups(images: Sequence[Inspected | Remembered], max_distance: int) -> list[list[Inspected | Remembered]]:
    """Return the images alike, directly or over others, by whole picture or by the scanner's image in it."""
    from scipy.cluster.hierarchy import DisjointSet

    connected = DisjointSet(range(len(images)))
    first_of: dict[str, int] = {}
    for number, image in enumerate(images):
        connected.merge(number, first_of.setdefault(image.sha256, number))
    for half in (0, 1):
        for i, j in alike_pairs([_likeness(image, half) for image in images], max_distance):
            connected.merge(i, j)
    subsets = [sorted(subset) for subset in connected.subsets() if len(subset) > 1]
    return [[images[number] for number in subset] for subset in sorted(subsets)]


def _likeness(image: Inspected | Remembered, half: int) -> Likeness:
    """Return the hashes of the whole picture (0) or of the scanner's image in it (1)."""
    length = len(image.likeness) // 2
    return Likeness.from_text(image.likeness[half * length : (half + 1) * length])


def _rank(image: Inspected) -> tuple[bool, bool, int, str]:
    """Return what sorts the best of images alike first: without marks, with a mask, large."""
    return image.look.overlays.has_marks, not image.look.mask_share, -image.size, image.id


def _faults_of_copies(image: Inspected, group: Sequence[Inspected]) -> list[Faulty]:
    """Return what is wrong with an image of a group, which is sorted: the best first."""
    # Frames of one examination are alike, and in one split anyway.
    copies = [
        other
        for other in group
        if other.id != image.id and (other.sha256 == image.sha256 or not _are_of_one_patient(image, other))
    ]
    same = [other for other in copies if other.sha256 == image.sha256]
    alike = [other for other in copies if other.sha256 != image.sha256]
    contrary = [other for other in copies if other.label != image.label]
    faults = []
    if same:
        best = next(member for member in group if member.sha256 == image.sha256)
        faults.append(Faulty("duplicate", "the same file", _ids(same), image is best))
    if alike:
        faults.append(Faulty("near_duplicate", "alike", _ids(alike), image is group[0]))
    if contrary:
        labels = ", ".join(sorted({other.label for other in contrary}))
        faults.append(Faulty("two_labels", f"{image.label} here, {labels} there", _ids(contrary)))
    return faults


def _are_of_one_patient(image: Inspected, other: Inspected) -> bool:
    return image.patient is not None and image.patient == other.patient


def _ids(images: Sequence[Inspected]) -> tuple[str, ...]:
    return tuple(image.id for image in images)


def _faults_alone(image: Inspected, config: QualityConfig) -> list[Faulty]:
    look = image.look
    faults = [
        Faulty(FLAGS_OF_DATABASES[flag], "the database says so") for flag in image.flags if flag in FLAGS_OF_DATABASES
    ]
    known = {fault.fault for fault in faults}
    if look.overlays.has_doppler and "colour_doppler" not in known:
        faults.append(Faulty("colour_doppler", f"{look.overlays.coloured_share:.1%} of the pixels have colour"))
    if look.overlays.has_marks and "overlay" not in known:
        count = len(look.overlays.marks)
        faults.append(Faulty("overlay", f"{count} mark{'s' * (count > 1)}" if count else "coloured marks"))
    if look.mask_share == 0 and image.label != "normal":
        faults.append(Faulty("empty_mask", f"no pixel of the mask is set, label {image.label}"))
    if look.mask_share is not None and look.mask_share > config.whole_share:
        faults.append(Faulty("whole_mask", f"the mask covers {look.mask_share:.0%} of the picture"))
    if look.outside_share > config.outside_share:
        faults.append(Faulty("mask_outside", f"{look.outside_share:.0%} of the mask lies beside the image"))
    return faults
