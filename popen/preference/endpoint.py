"""A corrector behind an OpenAI-compatible endpoint, as POPEN's ChatGPT: hallucinated phrases out, all else as it was.

Needs the extra `corrector` (`pip install popen-seg[corrector]`). The key is read from OPENAI_API_KEY; local servers
need none.
"""

import base64
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popen.data.safe_io import DataError, read_json, settle_json, storage_error
from popen.data.schema import SEG, Question, Sample
from popen.preference.correcting import Correction, minimal_correction

INSTRUCTIONS = (
    "You correct answers about pictures. An answer marks each thing it names with the tag <seg> behind it. "
    "Replace the name of a thing only where it is wrong: where no such thing is in the picture, or where another "
    "thing in the picture is what the question asks for. Keep every other word, the order, and every <seg>. "
    "Reply with the whole answer and nothing else. If nothing is wrong, repeat the answer unchanged."
)


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and how.

    Args:
        base_url: such as https://api.openai.com/v1. model: name of the model there.
        pictures: whether to send the picture; without it the names of the things in it are all the server knows.
        retries: of a failed request, with exponential back-off. timeout: seconds per request. workers: at a time.
    """

    base_url: str
    model: str
    pictures: bool = True
    retries: int = 5
    timeout: float = 60.0
    workers: int = 8


class EndpointChat:
    """Asks an endpoint each thing once, ever: replies are kept in `cache`, a file each.

    `counts` adds up: `asked` (requests sent), `cached`, `prompt_tokens`, `completion_tokens`.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path):
        try:
            import openai
        except ImportError as error:
            raise DataError("an endpoint needs the package openai: pip install popen-seg[corrector]") from error
        self.endpoint, self.cache = endpoint, Path(cache)
        self.counts: Counter[str] = Counter()
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
        )
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.cache, "nothing was asked") from error

    def replies(self, asked: list, messages: Callable[[Any], list[Any]]) -> list[str]:
        """The server's words to `messages` of each thing asked, several at a time.

        Raises:
            DataError: the endpoint cannot be reached or refuses, after all retries; what was answered stays cached.
        """
        with ThreadPoolExecutor(self.endpoint.workers) as pool:
            found = list(pool.map(lambda one: self._reply(messages(one)), asked))
        for _, counts in found:
            self.counts.update(counts)
        return [reply for reply, _ in found]

    def _reply(self, messages: list[Any]) -> tuple[str, dict[str, int]]:
        """The server's words, and what they cost."""
        key = hashlib.sha256(json.dumps([self.endpoint.model, messages]).encode()).hexdigest()
        file = self.cache / f"{key}.json"
        if file.is_file():
            return read_json(file)["reply"], {"cached": 1}
        try:
            completion = self._client.chat.completions.create(
                model=self.endpoint.model, messages=messages, temperature=0.0, max_tokens=512
            )
        except self._errors as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self.endpoint.base_url}: {reason or type(error).__name__}; "
                "check the address, the model's name and OPENAI_API_KEY and run again, replies so far are kept"
            ) from error
        reply = (completion.choices[0].message.content or "") if completion.choices else ""
        usage = completion.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        settled = settle_json(file, {"reply": reply})["reply"]  # another process may have asked the same meanwhile
        return settled, {"asked": 1, "prompt_tokens": tokens[0], "completion_tokens": tokens[1]}


class EndpointCorrector:
    """Asks the endpoint once per answer, ever; `counts` are those of its EndpointChat."""

    def __init__(self, endpoint: Endpoint, cache: str | Path):
        self.endpoint, self.chat = endpoint, EndpointChat(endpoint, cache)

    @property
    def counts(self) -> Counter[str]:
        """What was asked and what it cost so far."""
        return self.chat.counts

    def __call__(self, asked: list[tuple[Sample, Question, str, tuple[str, ...]]]) -> list[Correction | str | None]:
        """One result of `minimal_correction` per (sample, question, answer, phrases).

        Raises:
            DataError: as `EndpointChat.replies`.
        """
        replies = self.chat.replies(asked, lambda one: self._messages(one[0], one[1].question, one[2]))
        return [
            minimal_correction(answer, phrases, reply, SEG)
            for (_, _, answer, phrases), reply in zip(asked, replies, strict=True)
        ]

    def _messages(self, sample: Sample, question: str, answer: str) -> list[Any]:
        text = f"Question: {question}\nAnswer: {answer}"
        if sample.objects:
            text = f"In the picture: {', '.join(sample.objects)}.\n{text}"
        content: Any = text
        if self.endpoint.pictures:
            buffer = io.BytesIO()
            sample.image.convert("RGB").save(buffer, "PNG")
            url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": content}]
