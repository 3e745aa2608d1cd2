"""Reads the JSON of a request: any text may come."""

import json
from typing import Any, NoReturn

from flask import abort, request

from sdbatch.messages import Message


def read_json(most_nested: int = 100) -> Any:
    """The body of a request; ends the request with 415 if it is no JSON, with 400 if it is damaged or too deep."""
    if not request.is_json:
        abort(415, Message("send JSON, with the header Content-Type: application/json"))
    data = request.get_data(cache=False)
    try:
        value = json.loads(data, parse_constant=_refuse)
        _check(value, most_nested)
    except (ValueError, RecursionError) as error:  # a number of more than 4300 digits is a ValueError, too
        abort(400, Message("the body is no JSON: {problem}", str(error)[:200]))
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _check(value: Any, left: int) -> None:
    if left < 0:
        raise ValueError("it nests too deep")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check(part, left - 1)
