"""The disks that a run reads and writes: kind, room, speed, and whether locks hold."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.doctor.finding import Finding, fine, mend, note
from tools.doctor.subprocesses import CHECKOUT, answer_of, probed

MOUNTS = Path("/proc/mounts")
SHARED_KINDS = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "panfs", "wekafs", "afs", "pvfs2"}
# Options with which locks hold on one node only.
LOCAL_LOCKS = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}
SLOW_BYTES_S = 100e6
SLOW_SMALL_FILE_S = 0.01
# A checkpoint of Stable Diffusion 1.5 has 5 to 9 GB, and three are kept.
LOW_BYTES = 30e9
EMPTY_BYTES = 1e9
CHECKPOINT_BYTES = 7e9
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Mount:
    """One line of /proc/mounts."""

    point: Path
    kind: str
    options: frozenset[str]

    @property
    def is_shared(self) -> bool:
        """Whether other machines see it as well."""
        return self.kind in SHARED_KINDS or (self.kind.startswith("fuse.") and self.kind != "fuse.overlayfs")


@dataclass(frozen=True)
class Place:
    """A folder that matters, and what it is for. is_run: checkpoints are written here. is_read: nothing is written."""

    name: str
    path: Path
    is_run: bool = False
    is_read: bool = False


def places(run: Path) -> list[Place]:
    """Return the folders to look at, each once."""
    found = [Place("checkout", CHECKOUT), Place("run", run, is_run=True)]
    if os.environ.get("DATA"):
        found.append(Place("$DATA", Path(os.environ["DATA"]).expanduser(), is_read=True))
    if os.environ.get("SLURM_TMPDIR"):
        found.append(Place("$SLURM_TMPDIR", Path(os.environ["SLURM_TMPDIR"])))
    # Not tempfile.gettempdir() alone, which passes over a TMPDIR that is wrong.
    found.append(Place("$TMPDIR", Path(os.environ.get("TMPDIR") or tempfile.gettempdir())))
    return found


class Disks:
    """Looks at each folder, and measures each file system once."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._measured: dict[Path, str] = {}
        self.run_write_speed: float | None = None

    def check(self) -> Iterator[Finding]:
        """Check all folders."""
        for place in places(self._run):
            yield from self._check(place)

    def _check(self, place: Place) -> Iterator[Finding]:
        # A dead server makes even a look at the folder hang, so another process looks first.
        folder = place.path.absolute()
        looked = answer_of(["stat", "-L", str(folder)])
        if looked.problem and "no answer" in looked.problem:
            yield mend(place.name, f"{folder}: its disk does not answer", "ask who runs it, or use another folder")
            return
        if not folder.exists():
            if not place.is_run:
                yield mend(place.name, f"there is no folder {folder}", f"make it, or set {place.name} to one")
                return
            folder = next(parent for parent in folder.parents if parent.exists())
        if not folder.is_dir():
            yield mend(place.name, f"{folder} is a file", "give a folder")
            return
        mount = mount_of(folder)
        room = shutil.disk_usage(folder).free
        where = (
            f"{place.path.absolute()}: {mount.kind}{', shared' if mount.is_shared else ''}, {room / 1e9:.0f} GB free"
        )
        if place.is_read:
            is_readable = os.access(folder, os.R_OK | os.X_OK)
            yield fine(place.name, where) if is_readable else mend(place.name, f"{where}, may not be read", "chmod it")
            return
        if mount.point in self._measured and os.access(folder, os.W_OK):
            yield self._room(place, f"{where}; measured above ({self._measured[mount.point]})", room)
            return
        facts = probed("disk", str(folder), timeout_s=TIMEOUT_S)
        if "problem" in facts:
            yield _unusable(place, where, facts["problem"])
            return
        self._measured[mount.point] = place.name
        if place.is_run or (self.run_write_speed is None and _is_same_disk(folder, self._run)):
            self.run_write_speed = facts["write_speed"]
        yield from self._measured_findings(place, where, mount, facts, room)

    def _measured_findings(
        self, place: Place, where: str, mount: Mount, facts: dict[str, Any], room: int
    ) -> Iterator[Finding]:
        found = (
            f"{where}; writes {facts['write_speed'] / 1e6:.0f} MB/s, reads {facts['read_speed'] / 1e6:.0f} MB/s,"
            f" {facts['small_file_s'] * 1e3:.1f} ms a small file"
        )
        is_slow = min(facts["write_speed"], facts["read_speed"]) < SLOW_BYTES_S
        is_slow |= facts["small_file_s"] > SLOW_SMALL_FILE_S
        if facts["lock_problem"]:
            advice = "choose a run folder on a disk with flock: a lock keeps a second training out"
            kind = mend if place.is_run or place.name == "checkout" else note
            yield kind(place.name, f"{found}; locks do not work: {facts['lock_problem']}", advice)
        elif mount.options & LOCAL_LOCKS:
            advice = "do not start one run on two nodes at once: nothing would stop the second"
            yield note(place.name, f"{found}; locks hold on one node only", advice)
        elif is_slow and place.name not in ("$TMPDIR", "$SLURM_TMPDIR"):
            yield note(place.name, f"{found}: slow", _copy_shards())
        elif is_slow:
            yield note(place.name, f"{found}: slow", "shards copied here gain little")
        elif mount.kind in ("tmpfs", "ramfs"):
            yield note(place.name, found, "what lies here counts as memory, also against the job's")
        else:
            yield self._room(place, found, room)

    def _room(self, place: Place, found: str, room: int) -> Finding:
        if room < EMPTY_BYTES:
            return mend(place.name, found, "make room: a full disk ends a run")
        if place.is_run and room < LOW_BYTES:
            return note(place.name, found, "a Stable Diffusion run keeps three checkpoints of 5 to 9 GB each")
        return fine(place.name, found)


def mount_of(folder: Path) -> Mount:
    """Return the file system that a folder lies on. Of several on one point the last one is seen."""
    path = folder.resolve()
    found = Mount(Path("/"), "unknown", frozenset())
    for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        _, point, kind, options = line.split()[:4]
        mounted = Path(point.replace("\\040", " "))
        if path.is_relative_to(mounted) and len(mounted.parts) >= len(found.point.parts):
            found = Mount(mounted, kind, frozenset(options.split(",")))
    return found


def _is_same_disk(folder: Path, run: Path) -> bool:
    existing = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    return mount_of(folder) == mount_of(existing)


def _unusable(place: Place, where: str, problem: str) -> Finding:
    if place.name == "checkout":
        return fine(place.name, f"{where}; may not be written, which is well: runs may lie elsewhere")
    if "no answer" in problem:
        return mend(place.name, f"{where}; writing 64 MB took longer than {TIMEOUT_S:g} s", "use another folder")
    return mend(place.name, f"{where}; cannot be written: {problem}", "use another folder")


def _copy_shards() -> str:
    own = "${oc.env:SLURM_TMPDIR}" if os.environ.get("SLURM_TMPDIR") else "a folder on the node's own disk"
    return f"set loader.copy_to: {own}; shards are then copied there once, and read from there"
