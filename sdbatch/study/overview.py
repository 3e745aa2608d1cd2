"""What lies beside the images of a study: index.html, to look through them in a browser, and pictures.csv for programs.

The page needs no server and no network: it is opened from the folder, wherever that lies or is copied to. Texts of a
person stand in it as data alone, and its script puts them into the page as text.
"""

import csv
import io
import json
from importlib.resources import files as resources
from typing import Any

from sdbatch.job.cells import short_value
from sdbatch.job.manifest import Manifest
from sdbatch.messages import Message, here

INDEX, TABLE = "index.html", "pictures.csv"


def index_page(manifest: Manifest) -> str:
    """index.html: the images as a table of two chosen fields, sorted and filtered, each large at a click."""
    images = [
        {
            "file": picture.file,
            "index": picture.index,
            "seed": picture.seed,
            "prompt": _prompt(manifest, number),
            "values": {name: short_value(value) for name, value in (picture.values or {}).items()},
        }
        for number, picture in enumerate(manifest.pictures)
    ]
    words = (
        Message("across"),
        Message("down"),
        Message("sorted by"),
        Message("filter"),
        Message("all"),
        Message("none"),
        Message("size"),
        Message("images"),
        Message("number"),
    )
    told = {
        "title": manifest.job.get("name") or manifest.id,
        "axes": [name for axis in manifest.axes for name in axis],
        "images": images,
        "words": {str(word): here(word) for word in words},
    }
    # No tag can end the script that holds the data, and no line separator breaks a text of it.
    data = json.dumps(told).replace("<", "\\u003c")
    return (resources("sdbatch") / "data" / "study.html").read_text(encoding="utf-8").replace("__DATA__", data)


def csv_table(manifest: Manifest) -> str:
    """pictures.csv: a line for each image, with a column for each field that varies."""
    names = [name for axis in manifest.axes for name in axis]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["index", "file", "published", "sha256", *(["seed"] if "seed" not in names else []), *names])
    for picture in manifest.pictures:
        values = [_said((picture.values or {}).get(name)) for name in names]
        seed = [picture.seed] if "seed" not in names else []
        rows.writerow([picture.index, picture.file, picture.published, picture.sha256, *seed, *values])
    return text.getvalue()


def _said(value: Any) -> Any:
    """A value for a table program, which would take a text that begins with one of these for a formula."""
    if isinstance(value, str):
        return f"'{value}" if value[:1] in "=+-@\t\r" else value
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else value


def _prompt(manifest: Manifest, number: int) -> str:
    picture = manifest.pictures[number]
    said = (picture.values or {}).get("prompt", picture.prompt)
    return str(manifest.job.get("prompt", "") if said is None else said)
