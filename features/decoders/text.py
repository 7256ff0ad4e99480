"""Text: a string, or the bytes of a file in UTF-8."""

from __future__ import annotations

from features.decoders.base import BadPayload, Limits


def decode(payload: str | bytes, *, limits: Limits) -> str:
    """The text, as it is; BadPayload if it is empty, too long or not valid Unicode."""
    try:
        if isinstance(payload, bytes):
            payload = payload.decode("utf-8-sig")
        else:
            payload.encode()
    except UnicodeError as error:
        raise BadPayload("not valid Unicode text", stage="decode") from error
    if not payload.strip():
        raise BadPayload("empty text", stage="decode")
    if len(payload) > limits.characters:
        raise BadPayload(f"text of more than {limits.characters:,} characters", stage="decode")
    return payload
