"""The OpenAPI document of our interface. The jobs in it are those of `sdbatch schema`."""

import json
from functools import cache
from typing import Any

from sdbatch import __version__
from sdbatch.job.json_schema import job_schema

PROGRESS = ("pictures_done", "pictures", "step", "steps", "fraction", "eta_seconds", "seat", "attempt", "started_at")
MOST_JOBS = 100  # of one request
Schema = dict[str, Any]


def document(prefix: str = "") -> Schema:
    """The document; `prefix` is the path that a proxy puts before ours."""
    return {**_document(), "servers": [{"url": prefix or "/"}]}


@cache
def _document() -> Schema:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sdbatch",
            "version": __version__,
            "description": "Submit jobs, follow them, and get their images. docs/api.md explains it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {"schemas": _schemas(), "securitySchemes": _security()},
        "security": [{}, {"token": []}, {"password": []}],
    }


def _paths() -> Schema:
    name = {"name": "name", "in": "path", "required": True, "description": "A handle, or an id.", "schema": _text()}
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
    job = _json("The job.", "Job")
    return {
        "/api/jobs": {
            "post": {
                "operationId": "drop",
                "summary": "Submit a job, or several: all of them, or none.",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Jobs")}}},
                "responses": {"201": _json("Submitted.", "Dropped"), **_errors(400, 413, 415, 422, 503)},
            }
        },
        "/api/jobs/{name}": {
            "parameters": [name],
            "get": {
                "operationId": "show",
                "summary": "A job: where it is, and its images.",
                "responses": {"200": job, **_errors(404, 503)},
            },
        },
        "/api/jobs/{name}/cancel": {
            "parameters": [name],
            "post": {
                "operationId": "cancel",
                "summary": "Cancel a job. A waiting one is deleted; one that runs fails with its finished images.",
                "responses": {"200": job, **_errors(404, 409, 422, 503)},
            },
        },
        "/api/jobs/{name}/retry": {
            "parameters": [name],
            "post": {
                "operationId": "retry",
                "summary": "Run a job again that failed or was cancelled; its images stay.",
                "responses": {"200": job, **_errors(404, 409, 422, 503)},
            },
        },
        "/api/jobs/{name}/images/{number}": {
            "parameters": [name, number],
            "get": {
                "operationId": "image",
                "summary": "One image, also while the job runs.",
                "responses": {
                    "200": {"description": "The image.", "content": {"image/png": {"schema": _binary()}}},
                    **_errors(404, 503),
                },
            },
        },
        "/api/images": {
            "post": {
                "operationId": "upload",
                "summary": "Store an image that a job then names as its init_img.",
                "requestBody": {
                    "required": True,
                    "content": {f"image/{kind}": {"schema": _binary()} for kind in ("png", "jpeg", "webp")},
                },
                "responses": {"201": _json("Stored.", "Uploaded"), **_errors(413, 415, 422, 503)},
            }
        },
    }


def _schemas() -> Schema:
    kinds = json.loads(json.dumps(job_schema()["$defs"]).replace("#/$defs/", "#/components/schemas/"))
    del kinds["Job"]  # what a file may be, by its fields; here an array or one of the kinds
    one = {"anyOf": [_ref("Txt2Img"), _ref("Img2Img")]}
    several = {"type": "array", "minItems": 1, "maxItems": MOST_JOBS, "items": one}
    number, text = {"type": ["number", "null"]}, {"type": ["string", "null"]}
    progress = {key: text if key in ("seat", "started_at") else number for key in PROGRESS}
    image = {"number": {"type": "integer"}, "url": _text(), "seed": {"type": ["integer", "null"]}, "published": text}
    states = {"enum": ["waiting", "running", "done", "failed", "cancelled"]}
    job = {"handle": _text(), "id": text, "state": states, "url": _text()}
    return {
        **kinds,
        "Jobs": {"anyOf": [*one["anyOf"], several]},
        "Dropped": _object(
            {"jobs": _list(_object({"handle": _text(), "url": _text()})), "notes": _list(_text())},
        ),
        "Job": _object(
            {**job, "images": _list(_object(image))},
            {"progress": _object(progress), "reason": _text()},
        ),
        "Uploaded": _object({"path": _text()}),
        "Error": _object({"detail": _text()}, {"errors": _list(_text())}),
    }


def _security() -> Schema:
    return {
        "token": {"type": "http", "scheme": "bearer", "description": "The token of `sdbatch web --new-token`."},
        "password": {"type": "http", "scheme": "basic", "description": "The page's password, with any name."},
    }


def _errors(*codes: int) -> Schema:
    said = {
        400: "The body is damaged.",
        404: "There is no such job or image.",
        409: "The job is not in a state for this.",
        413: "The body is too large.",
        415: "The body has another type.",
        422: "What is wrong, line by line.",
        503: "The disk, or another of the machine's parts, fails.",
    }
    common = {"401": "Credentials are missing.", "403": "Not for this account.", "429": "Too many wrong passwords."}
    told = {str(code): said[code] for code in codes} | common
    return {code: _json(text, "Error") for code, text in sorted(told.items())}


def _json(text: str, schema: str) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _text() -> Schema:
    return {"type": "string"}


def _binary() -> Schema:
    return {"type": "string", "format": "binary"}
