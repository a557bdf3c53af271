"""The words around a query that one mask answers, as LISA and PixelLM put them in their evaluations.

They force the answer "[SEG]." and score its mask; the schema's form of that answer is "The target <seg> is here.".
The model is told nothing of the target but the query, and a hallucinated name cannot stand in a forced answer.
"""

from popen.data.schema import SEG

PHRASE = "target"
ANSWER = f"The {PHRASE} {SEG} is here."
DENIAL = f"There is no such {PHRASE} in the picture."
_REQUEST = "Please output segmentation mask"


def ask_phrase(phrase: str) -> str:
    """Ask for what a noun phrase names, "the man on the left"."""
    return f"What is {phrase.strip()} in this image? {_REQUEST}."


def ask_sentence(sentence: str) -> str:
    """Ask for what answers a sentence, "Where can one sit?"."""
    return f"{sentence.strip()} {_REQUEST}."


def ask_reason(sentence: str) -> str:
    """Ask as `ask_sentence` does, and for the reason."""
    return f"{sentence.strip()} {_REQUEST} and explain why."
