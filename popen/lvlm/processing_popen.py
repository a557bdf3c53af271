"""The processor: pictures to the canvas, questions and answers to tokens, tokens back to answers."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.utils import PROCESSOR_NAME, PushToHubMixin, cached_file

from popen.data.safe_io import DataError, check_image, read_json, write_json
from popen.data.sample import SEG
from popen.lvlm.canvas import Canvas
from popen.lvlm.families import family_of

SETTINGS_FILE = "popen_processor.json"
PHRASE = re.compile(r"(?:\b(?:the|a|an)\s+)?([^.,;:?!<>]+?)\s*$", re.IGNORECASE)
ARTICLE = re.compile(r"\b(?:the|a|an)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class DecodedAnswer:
    """An answer in words with `<seg>` after each complete target.

    `groups` holds, per target, where its `[SEG…]` tokens stand in the decoded ids; `incomplete` counts groups that
    were broken off and dropped.
    """

    text: str
    phrases: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    incomplete: int


class PopenProcessor(PushToHubMixin):
    """Wraps the backbone's own processor and adds the canvas and the segmentation codebook.

    Args:
        backbone: the processor of the vision-language backbone, with an image token and a chat template.
        image_size: side of the canvas in pixels.
        codebook_size: number of `[SEG…]` tokens a target has (N·L).
        max_length: longest sequence of picture, question and answer in tokens.
        family: `model_type` of the backbone, or `pixellm` for a model with `pixellm_compat`.
    """

    def __init__(self, backbone, image_size: int, codebook_size: int, max_length: int, family: str = "llava"):
        self.backbone, self.image_size, self.max_length = backbone, image_size, max_length
        self.family_name, self.family = family, family_of(family)
        self.tokenizer = backbone.tokenizer
        self.seg_tokens = tuple(f"[SEG{i}]" for i in range(codebook_size))
        self.seg_token_ids = tuple(self.tokenizer.convert_tokens_to_ids(list(self.seg_tokens)))
        if None in self.seg_token_ids or self.tokenizer.unk_token_id in self.seg_token_ids:
            raise ValueError(f"the tokenizer lacks {', '.join(self.seg_tokens)}; add_tokens them and resize the model")
        special = set(self.tokenizer.all_special_tokens) | {backbone.image_token, *self.seg_tokens}
        self._control_tokens = tuple(sorted(special))
        template = backbone.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\0"}]}],
            add_generation_prompt=True,
        )
        self._before_image, after_image = template.split(backbone.image_token)
        self._before_question, self._after_question = after_image.split("\0")
        blank = Image.new("RGB", (image_size, image_size))
        encoded = backbone(
            text=self._before_image + backbone.image_token,
            images=[blank],
            add_special_tokens=False,
            **self.family.image_options,
        )
        self.prefix_ids = (*self._first_token(), *(int(i) for i in encoded["input_ids"][0]))

    # ---- pictures

    @property
    def picture_tokens(self) -> int:
        """How many tokens a picture is to the language model."""
        return self.prefix_ids.count(self.tokenizer.convert_tokens_to_ids(self.backbone.image_token))

    def place(self, picture: Image.Image, name: str = "image") -> tuple[Image.Image, Canvas]:
        """A picture of any size on the canvas; DataError when it is not a plain picture."""
        picture = check_image(picture, name)
        canvas = self.family.canvas.fit(picture.height, picture.width, self.image_size)
        return canvas.place(picture), canvas

    def pixel_values(self, squares: list[Image.Image]) -> torch.Tensor:
        """Canvas pictures to the backbone's normalised pixels, (B, …); (B, 3, S, S) for most families."""
        return self.family.pixel_values(self.backbone.image_processor, squares)

    # ---- words

    def question_ids(self, question: str, name: str = "question") -> tuple[int, ...]:
        """Tokens of a question and the cue to answer it, to follow `prefix_ids`.

        Raises:
            DataError: the question is empty, holds control tokens, or leaves no room for an answer.
        """
        if not question.strip():
            raise DataError(f"{name}: the question is empty; ask for something in the picture")
        if SEG in question or any(token in question for token in self._control_tokens):
            raise DataError(f"{name}: the question holds a control token ({question[:60]!r}); take it out")
        ids = self._tokens(self._before_question + question.strip() + self._after_question)
        room = self.max_length - len(self.prefix_ids) - len(self.seg_token_ids) - 2
        if len(ids) > room:
            raise DataError(
                f"{name}: the question has {len(ids)} tokens, the context leaves room for {room}; shorten it"
            )
        return ids

    def answer_ids(self, answer: str, name: str = "answer") -> tuple[int, ...]:
        """Tokens of an answer, each `<seg>` written out as one target's `[SEG…]` tokens, ending with EOS.

        Raises:
            DataError: the answer holds another control token.
        """
        if any(token in answer for token in self._control_tokens):
            raise DataError(f"{name}: the answer holds a control token ({answer[:60]!r}); take it out")
        return (*self._tokens(answer.replace(SEG, "".join(self.seg_tokens))), self.tokenizer.eos_token_id)

    def most_tokens(self, question: str, answer: str) -> float:
        """No fewer tokens than picture, question and answer take, without counting them; infinite where not known.

        A token is at least a letter of plain ASCII; other letters may be several tokens.
        """
        words = f"{self._before_question}{question}{self._after_question}{answer.replace(SEG, '')}"
        marks = answer.count(SEG) * len(self.seg_token_ids) + 3  # EOS, and a blank that a tokenizer may put in front
        return len(self.prefix_ids) + len(words) + marks if words.isascii() else math.inf

    def phrase_ids(self, phrase: str) -> tuple[int, ...]:
        """Tokens of a target's phrase as they stand inside an answer."""
        return self._tokens(" " + phrase)

    def decode_answer(self, ids: list[int] | tuple[int, ...]) -> DecodedAnswer:
        """Tokens back to words; complete groups become `<seg>`, broken ones are dropped and counted."""
        eos = self.tokenizer.eos_token_id
        ids = list(ids[: ids.index(eos)]) if eos in ids else list(ids)
        pieces, groups, incomplete, words, column = [], [], 0, [], 0
        size = len(self.seg_token_ids)
        while column < len(ids):
            if tuple(ids[column : column + size]) == self.seg_token_ids:
                pieces.append(self._words(words))
                groups.append(tuple(range(column, column + size)))
                words, column = [], column + size
            elif ids[column] in self.seg_token_ids:
                incomplete += 1
                column += 1
                while column < len(ids) and ids[column] in self.seg_token_ids and ids[column] != self.seg_token_ids[0]:
                    column += 1
            else:
                words.append(ids[column])
                column += 1
        tail = self._words(words)
        text = "".join(piece + SEG for piece in pieces) + tail
        return DecodedAnswer(text.strip(), tuple(phrase_before(p) for p in pieces), tuple(groups), incomplete)

    def _words(self, ids: list[int]) -> str:
        """Words without control tokens, also those that the model spelled letter by letter."""
        text, before = self.tokenizer.decode(ids, skip_special_tokens=True), None
        while text != before:
            before = text
            for token in (SEG, *self._control_tokens):
                text = text.replace(token, "")
        return text

    def _first_token(self) -> tuple[int, ...]:
        """What the backbone's tokenizer puts in front of every text, unless the template wrote it already."""
        bos = self.tokenizer.bos_token_id
        adds = bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]
        return (bos,) if adds and not self._before_image.startswith(self.tokenizer.bos_token) else ()

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    # ---- files

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs) -> None:
        """Writes the backbone's processor and popen's settings beside it; AutoProcessor then finds this class."""
        folder = Path(save_directory)
        self.backbone.save_pretrained(folder)
        named = read_json(folder / PROCESSOR_NAME) | {"processor_class": type(self).__name__}
        write_json(folder / PROCESSOR_NAME, named)
        settings = {
            "backbone": type(self.backbone).__name__,
            "image_size": self.image_size,
            "codebook_size": len(self.seg_token_ids),
            "max_length": self.max_length,
            "family": self.family_name,
        }
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        if push_to_hub:
            self._upload_modified_files(str(folder), kwargs.pop("repo_id", folder.name), {}, **kwargs)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs) -> "PopenProcessor":
        """Reads a folder or a Hub id that `save_pretrained` wrote; DataError when it is not a popen model."""
        try:
            settings_file = cached_file(
                str(name_or_path), SETTINGS_FILE, _raise_exceptions_for_missing_entries=False, **kwargs
            )
        except OSError as error:
            raise DataError(f"{name_or_path}: no such model folder, nor one on the Hub within reach") from error
        if settings_file is None:
            raise DataError(f"{name_or_path}: no {SETTINGS_FILE} in it; this is not a popen model folder")
        settings = read_json(settings_file)
        backbone = _backbone_class(settings.pop("backbone", None), settings_file)
        kwargs["trust_remote_code"] = False  # the backbone is of transformers; an auto_map would lead back here
        return cls(backbone.from_pretrained(str(name_or_path), **kwargs), **settings)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """AutoProcessor calls it on a class that came with a model folder; there is nothing to remember."""


def _backbone_class(name: str | None, where: str) -> type:
    """The processor class of transformers that a settings file names; AutoProcessor finds it where none is named."""
    if name is None:
        return AutoProcessor
    found = processor_class_from_name(name)
    if not (isinstance(found, type) and issubclass(found, ProcessorMixin)):
        raise DataError(f"{where}: transformers has no processor {name!r}; update it, or correct 'backbone'")
    return found


def phrase_before(text: str) -> str:
    """The noun phrase at the end of the words in front of a `<seg>`: what follows the last article or punctuation."""
    match = PHRASE.search(text.strip())
    phrase = match.group(1) if match else ""
    return ARTICLE.split(phrase)[-1].strip()
