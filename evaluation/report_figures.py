"""The figures behind a report's verdicts in words, with their intervals and what real images reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """of: as the verdict is named. measure: what was measured. generated, real: its figures, "-": there is none."""

    of: str
    measure: str
    generated: str
    real: str
    verdict: str


def figures(metrics: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of metrics.json, in the order of its verdicts."""
    titles = {name: measure["title"] for name, measure in metrics["measures"].items()}
    found: dict[str, tuple[str, str, str]] = {}
    for name, of in metrics["databases"].items():
        for what, measure in (("ultrasound statistics", "distance"), ("features", "fid")):
            title = f"{titles[measure]}: distance, and what 95 % of halvings are within"
            found[f"{name}: {what}"] = title, said(of[measure]["generated"]), said(of[measure]["real"])
        if labels := of["labels"]:
            scores = (said(labels[source]["balanced_accuracy"]) for source in ("generated", "real"))
            found[f"{name}: labels"] = f"{titles['balanced_accuracy']}, by chance {labels['chance']:.3g}", *scores  # type: ignore[assignment]
    for name, of in metrics["masks"].items():
        for structure, one in of["classes"].items():
            best, through = one["real"], ""
            if one["reconstructed"]:
                best, through = one["reconstructed"], "; real ones through the VAE"
            title = f"{titles['dice']}{through}"
            found[f"{name}: mask of {structure}"] = title, said(one["generated"]["dice"]), said(best["dice"])
        for structure in of["unseen"]:
            found[f"{name}: mask of {structure}"] = titles["dice"], "-", "-"
    for space in ("pixels", "features"):
        of = metrics["memorisation"][space]
        found[f"copies by {space}"] = (
            f"suspects, and {of['num_copies']} copies, by {space}",
            _percent(of["share"], of["low"], of["high"]),
            f"{100 * of['expected']:.1f} %, at most {100 * of['expected_high']:.1f}",
        )
    rows = []
    for of_verdict, verdict in metrics["verdicts"].items():
        names = [of_verdict] if of_verdict in found else ["copies by pixels", "copies by features"]
        rows += [Figure(of_verdict, *found[name], verdict["text"]) for name in names]
    return rows


def limits(metrics: Mapping[str, Any]) -> list[str]:
    """Return what the evaluation could not have seen, a sentence each."""
    found = []
    for name, of in metrics["databases"].items():
        found.append(
            f"{name}: {of['num_generated']} images were compared with {of['num_real']} held-out ones of"
            f" {of['num_patients']} patients."
        )
    found += [f"{name} was not judged: {why}." for name, why in metrics["left_out"].items()]
    found += [patients_not_told(name) for name in metrics["without_patients"]]
    shares = [metrics["memorisation"][space]["smallest_found"] for space in ("pixels", "features")]
    told = [share for share in shares if share is not None]
    least = f"less than {100 * min(told):.1f} %" if told else "any share"
    found.append(
        f"Near-copies of training images in {least} of what it draws would not have shown, if none is a copy by itself."
    )
    return found


def patients_not_told(name: str) -> str:
    """Return what must be known of a database that does not say whose images they are."""
    return (
        f"{name} does not tell its patients: of images that look alike none is on both sides, but other images of one"
        " patient may be."
    )


def said(of: Mapping[str, float | None]) -> str:
    """Return a figure with its bounds."""
    value, low, high = (of[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    bounds = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"{value:.3g}{bounds}"


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
