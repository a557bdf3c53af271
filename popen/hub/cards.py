"""The README.md of what is pushed: metadata that the Hub reads, and text that people read."""

import yaml
from huggingface_hub import DatasetCard, ModelCard

from popen.data.safe_io import DataError
from popen.hub.card_facts import CardFacts
from popen.hub.folder import SharedFolder
from popen.hub.model_cards import model_card

__all__ = ["CardFacts", "card", "check_card"]


def card(repo_id: str, shared: SharedFolder, facts: CardFacts, remote_code: bool = False) -> str:
    """A whole card for a folder, its metadata checked; what nobody said is called not stated.

    Raises:
        DataError: a preference set or data set whose files do not hold what popen writes.
    """
    if shared.repo_type == "model":
        data, text = model_card(repo_id, shared, facts, remote_code)
    else:
        from popen.hub.dataset_cards import dataset_card  # it needs datasets, which takes seconds to import

        data, text = dataset_card(repo_id, shared, facts)
    whole = f"---\n{data.to_yaml()}\n---\n\n{text}"
    check_card(whole, f"card of {repo_id}", shared.repo_type)
    return whole


def check_card(text: str, name: str, repo_type: str = "model") -> None:
    """Checks a card's metadata, where it has any, as far as it can be done without the Hub.

    Raises:
        DataError: the metadata is not YAML, not an object, or its model-index is malformed.
    """
    if not text.lstrip().startswith("---"):
        return
    try:
        (ModelCard if repo_type == "model" else DatasetCard)(text)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: its metadata cannot be used ({reason}); correct what stands between the ---"
        ) from None
