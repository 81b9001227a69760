"""Pictures in the body of a request: a form with files, JSON with base64, or one picture as it is."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import NamedTuple

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

FORM, JSON = "multipart/form-data", "application/json"
RAW = ("image/", "application/octet-stream")
EXPECTED = f'send {FORM} with files, {JSON} with {{"images": ["base64", ...]}}, or one picture as image/*'


class Upload(NamedTuple):
    """A file of a request: its name, and its content or why it has none."""

    name: str
    content: bytes


class RequestError(Exception):
    """A request is not as expected.

    Parameters
    ----------
    status : int
        HTTP status of the answer.
    reason : str
        What is wrong with it.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def uploads_of(request: Request, most: int) -> list[Upload]:
    """Return the pictures of a request, whose body is in memory.

    Raises
    ------
    RequestError
        The body has another type, is malformed or incomplete, or holds no picture or too many.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        found = await _of_form(request, most)
    elif kind == JSON:
        found = _of_json(await request.body())
    elif kind.startswith(RAW):
        found = [Upload("picture 0", await request.body())]
    else:
        raise RequestError(415, f"content type {kind or 'missing'}; {EXPECTED}")
    if not found:
        raise RequestError(422, f"the request holds no picture; {EXPECTED}")
    if len(found) > most:
        raise RequestError(413, f"the request holds {len(found)} pictures; the limit is {most}")
    return found


async def _of_form(request: Request, most: int) -> list[Upload]:
    """Return the files of a form. The parser accepts a form that ends early and drops its last file, so look first."""
    _, _, boundary = request.headers["content-type"].partition("boundary=")
    boundary = boundary.partition(";")[0].strip().strip('"')
    end = f"--{boundary}--".encode("latin-1", "replace")
    if not boundary or end not in (await request.body())[-len(end) - 64 :]:
        raise RequestError(400, "the form is incomplete: it does not end with its boundary")
    try:
        async with request.form(max_files=most + 1, max_fields=16) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            return [Upload(file.filename or f"picture {row}", await file.read()) for row, file in enumerate(files)]
    except (HTTPException, MultiPartException) as error:
        reason = getattr(error, "detail", None) or getattr(error, "message", "")
        status = 413 if str(reason).startswith("Too many") else 400
        raise RequestError(status, f"the form could not be read: {reason}") from error


def _of_json(body: bytes) -> list[Upload]:
    """Return the pictures of {"image": text} or {"images": [text, ...]}."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise RequestError(422, f"got a JSON {type(document).__name__}; {EXPECTED}")
    texts = [document["image"]] if "image" in document else document.get("images", [])
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise RequestError(422, f'"images" must be a list of base64 texts; {EXPECTED}')
    return [Upload(f"picture {row}", _decoded(text, row)) for row, text in enumerate(texts)]


def _decoded(text: object, row: int) -> bytes:
    """Return the bytes of base64, with or without `data:image/png;base64,` before it."""
    if not isinstance(text, str):
        raise RequestError(422, f"picture {row} is not a text of base64")
    if "://" in text[:16]:
        raise RequestError(422, f"picture {row} is a web address, which is never fetched; send the picture as base64")
    start, _, rest = text.partition(",")
    try:
        return base64.b64decode(rest if start.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"picture {row} is not base64 ({error})") from error
