"""What became of each fault that the tests injected into a store: counts, and a table of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

Cell = tuple[str, str, str]


class FaultTable:
    """Outcomes by medium, place and fault, and the calls of an undisturbed run by place."""

    def __init__(self) -> None:
        self.outcomes: dict[Cell, Counter[str]] = defaultdict(Counter)
        self.calls: dict[str, Counter[str]] = {}

    def dump(self) -> dict[str, Any]:
        """All of it as plain types, which one process can send to another."""
        return {
            "outcomes": {cell: dict(counts) for cell, counts in self.outcomes.items()},
            "calls": {medium: dict(counts) for medium, counts in self.calls.items()},
        }

    def add(self, dumped: Mapping[str, Any]) -> None:
        """Count what another process has dumped."""
        for cell, counts in dumped["outcomes"].items():
            self.outcomes[cell].update(counts)
        for medium, counts in dumped["calls"].items():
            self.calls.setdefault(medium, Counter(counts))

    def write(self, reporter: pytest.TerminalReporter) -> None:
        """How often each fault was injected at each place, and how the runs ended."""
        for medium in dict.fromkeys(name for name, _, _ in self.outcomes):
            cells = {(p, f): found for (m, p, f), found in self.outcomes.items() if m == medium}
            places = list(dict.fromkeys(place for place, _ in cells))
            faults = list(dict.fromkeys(fault for _, fault in cells))
            rows = [["", "calls", *faults]]
            for place in places:
                found = [cells.get((place, fault), {}) for fault in faults]
                shown = [" ".join(f"{n}{o[0]}" for o, n in counts.items()) for counts in found]
                rows.append([place, str(self.calls[medium][place]), *shown])
            total = sum(cells.values(), Counter())
            parts = ", ".join(f"{n} {outcome}" for outcome, n in total.most_common())
            reporter.section(f"faults of the store: {medium}")
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            for row in rows:
                line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                reporter.write_line(line.rstrip())
            reporter.write_line(
                f"{total.total()} injections: {parts}; each run again, and none lost "
                "(by initial in the table)"
            )
