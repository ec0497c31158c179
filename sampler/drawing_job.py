"""One drawing at a time, in a thread of its own, that can be watched and stopped."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from sampler.draw import Drawer, Settings, Wish
from sampler.picture import picture_bytes

# Drawings whose images are still there to be fetched.
KEPT_JOBS = 8


class StoppedError(Exception):
    """Someone asked the drawing to stop."""


@dataclass
class Job:
    """A drawing. images: the PNGs so far. state: "drawing", "done", "stopped" or "failed", with `error`."""

    wishes: Sequence[Wish]
    settings: Settings
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    images: list[bytes] = field(default_factory=list)
    state: str = "drawing"
    error: str = ""
    step: int = 0
    is_asked_to_stop: bool = False

    def told(self) -> dict[str, object]:
        """Return what the page shows of it."""
        return {
            "job": self.key,
            "state": self.state,
            "error": self.error,
            "done": len(self.images),
            "count": len(self.wishes),
            "step": self.step,
            "steps": self.settings.steps,
            "seeds": [wish.seed for wish in self.wishes],
        }


class Desk:
    """Takes one job at a time."""

    def __init__(self, drawer: Drawer) -> None:
        self.drawer = drawer
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def begin(self, wishes: Sequence[Wish], settings: Settings) -> Job | None:
        """Begin to draw; None where another drawing is under way."""
        with self._lock:
            if any(job.state == "drawing" for job in self._jobs.values()):
                return None
            job = Job(wishes, settings)
            self._jobs[job.key] = job
            while len(self._jobs) > KEPT_JOBS:
                del self._jobs[next(iter(self._jobs))]
        threading.Thread(target=self._draw, args=(job,), daemon=True).start()
        return job

    def job(self, key: str) -> Job | None:
        """Return a job that is still kept."""
        return self._jobs.get(key)

    def stop(self) -> None:
        """Ask what is being drawn to stop after its step."""
        for job in list(self._jobs.values()):
            job.is_asked_to_stop = True

    def _draw(self, job: Job) -> None:
        def tell(step: int, _: int) -> None:
            job.step = step
            if job.is_asked_to_stop:
                raise StoppedError

        try:
            self.drawer.forget_text()  # of prompts that nobody asks any more
            self.drawer.prepare_text([text for wish in job.wishes for text in (wish.negative, wish.prompt)])
            for wish in job.wishes:
                job.step = 0
                image = self.drawer.draw([wish], job.settings, tell)[0]
                mask = "" if wish.mask_HW is None else "painted on the page"
                job.images.append(picture_bytes(image, wish, job.settings, self.drawer.manifest, mask))
            job.state = "done"
        except StoppedError:
            job.state = "stopped"
        except Exception as error:  # whatever it is, the page must hear of it and the next drawing must be possible
            job.error = " ".join(str(error).split()) or type(error).__name__
            job.state = "failed"
