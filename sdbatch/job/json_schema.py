"""The JSON Schema of a job file: one job, or an array of them."""

from typing import Any

from pydantic.json_schema import models_json_schema

from sdbatch.job.cells import SHARED
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.messages import Message

MATRIX = Message("Fields with lists or ranges, such as seed: 1..20 - all combinations are drawn.")


def _of_studies(varying: list[str]) -> dict[str, Any]:
    """`matrix`, `zip` and `exclude`: which fields they may have; the reader checks the values."""
    group = {
        "type": "object",
        "propertyNames": {"enum": varying},
        "minProperties": 1,
        "additionalProperties": {"description": "A list, a range such as 1..20 or 0.3..0.9 step 0.1, or one value."},
    }
    return {
        "matrix": {**group, "title": Message("Matrix"), "description": MATRIX},
        "zip": {**group, "title": "Zip", "description": "Fields with lists of one length: their rows side by side."},
        "exclude": {
            "title": "Exclude",
            "description": "Cells that are left out: those with all values of an entry.",
            "type": "array",
            "items": group,
        },
    }


def job_schema() -> dict[str, Any]:
    """The schema. Editors choose the kind as the service does: `init_img` or `strength` make a job img2img.

    Hyphens in names, and null for a default, are allowed in files but not in the schema, so that editors offer only one
    way to write a job.
    """
    _, definitions = models_json_schema([(Txt2Img, "validation"), (Img2Img, "validation")])
    kinds: dict[str, Any] = definitions["$defs"]
    for kind in (kinds["Txt2Img"], kinds["Img2Img"]):
        seed = kind["properties"]["seed"]
        seed["anyOf"] = [{rule: seed.pop(rule) for rule in ("type", "minimum", "maximum")}, {"const": "random"}]
        kind["properties"]["$schema"] = {
            "type": "string",
            "description": "For editors; sdbatch does not read it.",
        }
        kind["properties"] |= _of_studies([name for name in kind["properties"] if name not in (*SHARED, "$schema")])
        kind["anyOf"] = [
            {"required": ["prompt"]},
            *({"required": [key], "properties": {key: {"required": ["prompt"]}}} for key in ("matrix", "zip")),
            {"required": ["from_file"], "properties": {"from_file": {"minLength": 1}}},
        ]
    kinds["Txt2Img"]["if"] = {"required": ["plms"], "properties": {"plms": {"const": True}}}
    kinds["Txt2Img"]["then"] = {"properties": {"ddim_eta": {"const": 0}, "sampler": {"const": "plms"}}}
    kinds["Img2Img"]["properties"]["laion400m"] = {
        "title": "LAION-400M model",
        "description": "Not for img2img.",
        "type": "boolean",
        "const": False,
        "default": False,
    }
    job = {
        "type": "object",
        "if": {"anyOf": [{"required": ["init_img"]}, {"required": ["strength"]}]},
        "then": {"$ref": "#/$defs/Img2Img"},
        "else": {"$ref": "#/$defs/Txt2Img"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sdbatch job",
        "description": "Parameters of the original Stable Diffusion v1 scripts: one job, or several in an array.",
        "if": {"type": "array"},
        "then": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Job"}},
        "else": {"$ref": "#/$defs/Job"},
        "$defs": {"Job": job, **kinds},
    }
