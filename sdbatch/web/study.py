"""A study as a table: its images by two fields, which the visitor chooses."""

from typing import Any

from flask import Blueprint, abort, render_template, request

from sdbatch.history import restore
from sdbatch.history.records import PictureRecord
from sdbatch.job.cells import short_value
from sdbatch.web.site import site

MOST = 1000  # images of a table
ALL = ""  # of a field that no side of the table has

pages = Blueprint("study", __name__)


@pages.get("/study/<job>")
def show(job: str) -> str:
    """The images of a study."""
    found = site().history.job(job)
    record = restore.record_of(site().root, found) if found else {}
    axes = [str(name) for axis in record.get("axes", []) for name in axis]
    if not axes:
        abort(404)
    records = {each.file: each for each in site().history.pictures_of(job)}
    images = [
        (records[listed["file"]], _labels(listed.get("values"), axes))
        for listed in record["pictures"]
        if listed.get("file") in records
    ]
    across = _chosen("across", axes, axes[0])
    down = _chosen("down", axes, next((name for name in axes if name != across), ALL))
    others = {name: request.args.get(name, ALL) for name in axes if name not in (across, down)}
    shown = [(image, own) for image, own in images if all(value in (ALL, own[name]) for name, value in others.items())]
    cells: dict[tuple[str, str], list[tuple[PictureRecord, str]]] = {}
    for image, own in shown[:MOST]:
        label = ", ".join(own[name] for name, value in others.items() if value == ALL)
        cells.setdefault((own.get(across, ALL), own.get(down, ALL)), []).append((image, label))
    return render_template(
        "study.html",
        job=job,
        axes=axes,
        across=across,
        down=down,
        others=others,
        values={name: [*dict.fromkeys(own[name] for _, own in images)] for name in axes},
        columns=[*dict.fromkeys(place for place, _ in cells)],
        rows=[*dict.fromkeys(place for _, place in cells)],
        cells=cells,
        left_out=max(0, len(shown) - MOST),
    )


def _labels(values: Any, axes: list[str]) -> dict[str, str]:
    said = values if isinstance(values, dict) else {}
    return {name: short_value(said.get(name, "")) for name in axes}


def _chosen(side: str, axes: list[str], usual: str) -> str:
    asked = request.args.get(side, usual)
    return asked if asked in (*axes, ALL) else usual
