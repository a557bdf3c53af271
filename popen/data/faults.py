"""What an audit of a data set finds: faults as lines of a report, counted by sort and capped, beside what is there."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

MOST_SHOWN = 20  # lines for one sort of fault


@dataclass(frozen=True)
class Fault:
    """Something wrong in a row: what it is in general (`sort`), and in this case with the way out (`what`)."""

    sort: str
    what: str
    question_id: str = ""
    is_error: bool = True


class Counts(Protocol):
    """What a split holds."""

    def lines(self, split: str) -> list[str]:
        """The counts as a small table."""


@dataclass(frozen=True)
class Audit:
    """The faults as lines (capped), how many there are of each sort, and the counts of each split."""

    lines: tuple[str, ...]
    errors: Counter[str]
    warnings: Counter[str]
    counts: Mapping[str, Counts]


@dataclass
class FaultLog:
    """Collects faults as they are found."""

    lines: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)

    def tell(self, where: str, fault: Fault) -> None:
        """Count a fault, and write its line while there are few of its sort."""
        found = self.errors if fault.is_error else self.warnings
        found[fault.sort] += 1
        if found[fault.sort] <= MOST_SHOWN:
            line = f"{'error' if fault.is_error else 'warning'}: {where}: {fault.what}"
            self.lines.append(" ".join(line.split()))
        elif found[fault.sort] == MOST_SHOWN + 1:
            self.lines.append(f"...: more of this sort ({fault.sort}) are counted below")

    def audit(self, counts: Mapping[str, Counts]) -> Audit:
        """All that was found, beside what there is."""
        return Audit(tuple(self.lines), self.errors, self.warnings, counts)
