"""The conformance test of an encoder as a command, with its findings as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml
from rich.console import Console
from rich.markup import escape

from features import payloads
from features.decoders.base import BadPayload
from features.encoders import EncoderSpec, parse_encoder
from features.encoders.conformance import check_encoder
from workflows.console import several, table
from workflows.pipeline import ConfigurationError


def check(
    encoder: str, *, options: Sequence[str], samples: Sequence[Path], console: Console
) -> bool:
    """Print what was found of each check; whether all have passed.

    `options` are `NAME=VALUE`, each value as YAML. ConfigurationError if there is no such
    encoder, if an option is wrong, or if a sample cannot be decoded.
    """
    spec = _spec(encoder, options=options)
    given = [payload for path in samples for payload in _payloads(path, spec=spec)]
    findings = check_encoder(spec, payloads=given)
    what = several(len(given), "sample") if given else f"built-in {spec.kind} samples"
    console.print(f"[bold]{escape(spec.type)}[/bold] on {what}")
    made = table("check", "found", wraps=["check", "found"])
    for finding in findings:
        found = "[green]passed[/green]"
        if not finding.passed:
            found = f"[bold red]failed[/bold red] {escape(finding.problem)}"
            found += f"\n[dim]to do:[/dim] {escape(finding.remedy)}"
        made.add_row(escape(finding.check), found)
    console.print(made)
    failed = sum(not finding.passed for finding in findings)
    passed = f"{several(len(findings) - failed, 'check')} passed"
    console.print(f"{passed}, [bold red]{failed} failed[/bold red]" if failed else passed)
    return not failed


def _spec(encoder: str, *, options: Sequence[str]) -> EncoderSpec:
    fields: dict[str, Any] = {"type": encoder}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ConfigurationError(f"--option {option}: write NAME=VALUE")
        try:
            fields[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--option {option}: the value is no YAML") from error
    try:
        return parse_encoder(fields)
    except pydantic.ValidationError as error:
        lines = []
        for fault in error.errors():
            name = fault.get("ctx", {}).get("field") or ".".join(map(str, fault["loc"]))
            lines.append(f"{encoder}: {name}: {fault['msg']}" if name else fault["msg"])
        raise ConfigurationError("\n".join(lines)) from error
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _payloads(path: Path, *, spec: EncoderSpec) -> list[Any]:
    """What a file holds, decoded: one payload; of records, a JSON list of several."""
    try:
        content = payloads.fetch(str(path), base="")
        if spec.kind != "table":
            return [payloads.decode(content, kind=spec.kind)]
        records = json.loads(content)
        records = records if isinstance(records, list) else [records]
        return [
            payloads.decode_row(tuple(record.values()), kind="table", names=tuple(record))
            for record in records
        ]
    except (BadPayload, OSError) as error:
        raise ConfigurationError(f"--samples {path}: {error}") from error
    except (AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"--samples {path}: samples of records are a JSON list of objects"
        ) from error
