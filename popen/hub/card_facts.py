"""What a folder does not say about itself, and the parts that every card has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popen.data.safe_io import DataError, read_json

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class CardFacts:
    """What its author says of a model or data set; None where nothing is said, and the card then says so.

    Args:
        base_model, data: Hub id or plain words. command: the line that trained or mined it.
        config: text of the recipe's YAML. summary: what `eval.segmentation` or a benchmark wrote to summary.json.
        licence: an identifier the Hub knows, as "apache-2.0".
    Raises:
        DataError: a licence that is no identifier, or a summary of another kind.
    """

    base_model: str | None = None
    data: str | None = None
    command: str | None = None
    config: str | None = None
    summary: Mapping[str, Any] | None = None
    licence: str | None = None

    def __post_init__(self):
        if self.licence is not None and not LICENCE.fullmatch(self.licence):
            raise DataError(
                f"licence {self.licence!r}: give an identifier of the Hub's list, as apache-2.0 or cc-by-4.0"
            )
        if self.summary is not None:
            try:
                found = self.arms
            except (AttributeError, KeyError, TypeError):
                found = {}
            if not found or not all(isinstance(numbers, Mapping) for numbers in found.values()):
                raise DataError(
                    "summary: no arms with numbers in it; give a summary.json of eval.segmentation or of a benchmark"
                )

    @property
    def arms(self) -> dict[str, Mapping[str, Any]]:
        """The summary's numbers by arm, of a benchmark by arm and protocol; none without a summary."""
        if self.summary is None:
            return {}
        if "results" in self.summary:
            return {f"{own['arm']}, {own['protocol']} answers": own for own in self.summary["results"]}
        answers = self.summary.get("answers", "free")
        return {f"{arm}, {answers} answers": numbers for arm, numbers in self.summary["arms"].items()}

    @property
    def evaluator(self) -> str:
        """The module that wrote the summary."""
        return f"eval.{self.summary.get('benchmark', 'segmentation')}" if self.summary else ""

    @classmethod
    def read(cls, config: str | Path | None = None, summary: str | Path | None = None, **said: str | None):
        """As the constructor, with the recipe's YAML and the summary given as files."""
        try:
            text = None if config is None else Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{config}: cannot be read ({error}); give the YAML of the recipe") from None
        return cls(config=text, summary=None if summary is None else read_json(summary), **said)


def hub_id(said: str | None) -> str | None:
    """What may stand in a card's metadata: owner/name, and not a folder of this machine that reads like one."""
    return said if said is not None and HUB_ID.fullmatch(said) and not Path(said).exists() else None


def in_words(said: str | None) -> str:
    """What may stand in a card's text: a Hub id as a link, a folder by its last name only."""
    if said is None:
        return "not stated by its author"
    if hub_id(said):
        return f"`{said}`"
    return f"`{Path(said).name}`" if "/" in said and " " not in said else said


def origin(facts: CardFacts, verb: str) -> str:
    """How it came to be: the command and the YAML, as they were given."""
    parts = []
    if facts.command:
        parts.append(f"{verb} with\n\n{fenced(facts.command, 'bash')}")
    if facts.config:
        parts.append(f"The recipe's configuration:\n\n{fenced(facts.config, 'yaml')}")
    return "\n\n".join(parts) or "The command is not stated by its author."


def licence(facts: CardFacts) -> str:
    """The licence in words."""
    return f"{facts.licence}." if facts.licence else "Not stated by its author: ask before you use it."


def fenced(text: str, language: str) -> str:
    """A code block that holds any text, also one with fences in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def sections(title: str, lead: str, **parts: str) -> str:
    """A card's text; `_` in the name of a part is a space of its heading."""
    body = [f"# {title}", lead, *(f"## {name.replace('_', ' ')}\n\n{part}" for name, part in parts.items())]
    return "\n\n".join(part.strip() for part in body) + "\n"
