"""The conformance test of an encoder: what a job takes for granted, tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from features.encoders import checks
from features.encoders.base import EncoderSpec
from features.encoders.sample_payloads import common_payloads, odd_payloads


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has found."""

    check: str
    """What an encoder has to do."""
    problem: str = ""
    """What is wrong; empty if nothing is."""
    remedy: str = ""
    """What to do about it."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def check_encoder(
    spec: EncoderSpec,
    *,
    payloads: Sequence[Any] = (),
    odd: Mapping[str, Any] | None = None,
    elsewhere: bool = True,
) -> list[Finding]:
    """Try an encoder on decoded payloads: a finding for each check, in the order of a job.

    Without `payloads` and `odd` (by what is odd about each), those of `sample_payloads` are
    taken. Where a check makes others pointless (no spec, no embedding), they are left out.
    Costs a few forward passes here and, with `elsewhere`, one in a second process, which loads the
    encoder too.
    """
    samples = list(payloads) or common_payloads(spec)
    oddities = odd_payloads(spec) if odd is None else dict(odd)
    findings: list[Finding] = []

    def attempt(check: _Check, *arguments: Any) -> Any:
        """What the check gives, or _FAILED."""
        try:
            result = check.run(*arguments)
        except Exception as error:  # whatever a stranger's code raises is the finding
            problem = str(error) if isinstance(error, checks.Unfit) else checks.shown(error)
            findings.append(Finding(check=check.name, problem=problem, remedy=check.remedy))
            return _FAILED
        findings.append(Finding(check=check.name))
        return result

    if attempt(_SPEC, spec) is _FAILED:
        return findings
    attempt(_DOCUMENTED, spec)
    if spec.needs_fit:
        fitted = attempt(_FIT, spec, samples)
        if fitted is _FAILED:
            return findings
        spec = fitted
    if attempt(_ROUND_TRIP, spec) is _FAILED:
        return findings
    encoder = attempt(_LOADS, spec)
    if encoder is _FAILED:
        return findings
    prepared = attempt(_PREPARES, encoder, samples)
    if prepared is _FAILED or attempt(_SHAPES, spec, encoder, prepared) is _FAILED:
        return findings
    rows = checks.encode(encoder, prepared)
    trial = checks.Trial(spec=spec, encoder=encoder, samples=samples, prepared=prepared, rows=rows)
    for check in _ON_ROWS:
        attempt(check, trial)
    attempt(_ODD, trial, oddities)
    if elsewhere:
        attempt(_PROCESSES, trial)
    return findings


_FAILED = object()


@dataclass(frozen=True, kw_only=True)
class _Check:
    name: str
    run: Callable[..., Any]
    remedy: str


_SPEC = _Check(
    name="the spec is frozen, and its fingerprint stable",
    run=checks.spec_is_sound,
    remedy="derive from EncoderSpec; options are fields of plain data; set `kind`; no clock, path "
    "or random number in a field",
)
_DOCUMENTED = _Check(
    name="the spec and its fields are documented",
    run=checks.is_documented,
    remedy="a docstring under the class, and one under each field",
)
_FIT = _Check(
    name="a fit is a function of the payloads",
    run=checks.fits,
    remedy="`fitted` returns a copy of the spec with the statistics as fields",
)
_ROUND_TRIP = _Check(
    name="the spec comes back from its JSON",
    run=checks.round_trips,
    remedy="fields of plain data; `type` is the dotted path of the class",
)
_LOADS = _Check(
    name="it loads",
    run=checks.loads,
    remedy="`load()` returns an object with `dim`, `prepare`, `size` and `encode`",
)
_PREPARES = _Check(
    name="it prepares payloads, and leaves them as they are",
    run=checks.prepares,
    remedy="`prepare` takes what is decoded for the kind and returns something new; `size` is an "
    "int; if the built-in samples are of another form than yours, give --samples",
)
_SHAPES = _Check(
    name="embeddings have the right shape and type",
    run=checks.has_right_shapes,
    remedy="float32 [B, dim], or a list of [T, dim] where `sequence` is true; finite; `dtype: "
    "float32` for values beyond 65,504",
)
_ODD = _Check(
    name="odd payloads are embedded, or refused with a reason",
    run=checks.meets_odd_ones,
    remedy="raise ValueError in `prepare`, with a message for the person who reads the quarantine",
)
_PROCESSES = _Check(
    name="another process gives the same",
    run=checks.elsewhere,
    remedy="the spec is importable there by its dotted path (PYTHONPATH), holds plain data, and "
    "the encoder depends on nothing else: no global state, no hash() of text, no seed",
)
_ON_ROWS = (
    _Check(
        name="the same batch gives the same bits",
        run=checks.is_deterministic,
        remedy="evaluation mode (no dropout), no random numbers, no state kept between calls",
    ),
    _Check(
        name="a payload alone is as in a batch",
        run=checks.alone,
        remedy="mask what pads; no statistics over the batch; or state a larger `tolerance`",
    ),
    _Check(
        name="neighbours and order change nothing",
        run=checks.among_others,
        remedy="row i of the result is payload i's; mask what pads; or state a larger `tolerance`",
    ),
    _Check(
        name="threads prepare alike",
        run=checks.in_threads,
        remedy="`prepare` keeps nothing in `self`; what cannot be shared is made per call",
    ),
    _Check(
        name="all at once is prepared as one by one",
        run=checks.all_at_once,
        remedy="`prepare_all` gives what `prepare` gives, ValueErrors in their places",
    ),
    _Check(
        name="an image of Pillow's is prepared as its array",
        run=checks.pillow,
        remedy="`prepare` takes both (`np.asarray(payload)` is the array of both); or leave "
        "`takes_pillow` out",
    ),
)
