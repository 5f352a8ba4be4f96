"""The one renderer: text to tokens and loss roles together, for training, rollouts, evaluation and serving (DESIGN 4).

Every segment is tokenised apart, so that no merge crosses a boundary: opening, image tokens, question, think switch,
tags, trace, answer. Thinking on, the model writes `<think>trace</think>answer<eos>`; off, the prompt ends with a
prefilled `<think></think>` and the model writes `answer<eos>`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lineside.errors import LinesideError
from lineside.model.tree import ANSWER, NONE, TRACE

IMAGE = "<image>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CAPTION_PROMPT = "Describe the picture."
KEPT, SHORT = 1 << 16, 512  # texts whose tokens are kept, and the characters of the longest of them


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The fixed text around a turn. `eos` ends the assistant's turn."""

    user_open: str
    user_close: str
    eos: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """ChatML or Llama-3 headers if the vocabulary has their tokens, plain words otherwise."""
        vocabulary = tokenizer.get_vocab()
        if "<|im_start|>" in vocabulary:
            return cls("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
        if "<|start_header_id|>" in vocabulary:
            head = "<|start_header_id|>{}<|end_header_id|>\n\n"
            return cls("<|begin_of_text|>" + head.format("user"), "<|eot_id|>" + head.format("assistant"), "<|eot_id|>")
        if "<|user|>" in vocabulary:  # the nano preset's own tokenizer
            return cls("<|user|>", "<|assistant|>", "<|end|>")
        if not tokenizer.eos_token:
            raise LinesideError(
                "the tokenizer has no chat tokens and no eos token: give it an eos_token so that answers can end"
            )
        return cls(f"{tokenizer.bos_token or ''}USER: ", "\nASSISTANT: ", str(tokenizer.eos_token))


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens with the role each has as a target."""

    tokens: tuple[int, ...]
    roles: tuple[int, ...]


class Renderer:
    """Text in, tokens and roles out. `image_tokens` is the number of tokens one picture takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.format = ChatFormat.of(tokenizer)
        # A pass meets the texts of the one before again, and many questions and answers are one another's copies.
        self._kept = functools.lru_cache(KEPT)(self._encode)
        self.image_id = self._single(IMAGE)
        self.think_open = self._single(THINK_OPEN)
        self.think_close = self._single(THINK_CLOSE)
        self.eos_id = self._single(self.format.eos)
        self._open = self.encode(self.format.user_open)
        self._close = self.encode(self.format.user_close)

    def _single(self, token: str) -> int:
        ids = self.encode(token)
        if len(ids) != 1:
            raise LinesideError(
                f"{token!r} must be one token of the vocabulary; this tokenizer splits it into {len(ids)}"
            )
        return ids[0]

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of our own, trusted text: chat tokens and tags in it are recognised."""
        return self._kept(text) if len(text) <= SHORT else self._encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_untrusted(self, text: str) -> tuple[int, ...]:
        """Token ids of a question, trace or answer, in which a written `<image>` or `<think>` must stay plain text."""
        for token in (IMAGE, THINK_OPEN, THINK_CLOSE, self.format.eos):
            if token in text:
                text = text.replace(token, token[0] + " " + token[1:])
        return self.encode(text)

    def prefix(self, images: int) -> tuple[int, ...]:
        """Opening of the user's turn and the tokens of its pictures: what all questions of a frame share."""
        return self._open + (self.image_id,) * (self.image_tokens * images)

    def question(self, text: str, *, thinking: bool) -> tuple[int, ...]:
        """The question, the end of the user's turn and the think switch."""
        switch = () if thinking else (self.think_open, self.think_close)
        return self.encode_untrusted(text) + self._close + switch

    def response(self, trace: str | None, answer: str) -> Segment:
        """What the model is to write. `trace` None: thinking off, the answer alone. The caller decides which traces
        are valid."""
        answer_ids = self.encode_untrusted(answer)
        if trace is None:
            return Segment((*answer_ids, self.eos_id), (ANSWER,) * (len(answer_ids) + 1))
        trace_ids = self.encode_untrusted(trace)
        tokens = (self.think_open, *trace_ids, self.think_close, *answer_ids, self.eos_id)
        roles = (ANSWER, *(TRACE,) * len(trace_ids), ANSWER, *(ANSWER,) * (len(answer_ids) + 1))
        return Segment(tokens, roles)

    def full(self, images: int, question: str, trace: str | None, answer: str) -> Segment:
        """One whole sample as a row: prefix, question, response."""
        head = self.prefix(images) + self.question(question, thinking=trace is not None)
        response = self.response(trace, answer)
        return Segment(head + response.tokens, (NONE,) * len(head) + response.roles)

    def decode(self, tokens: tuple[int, ...] | list[int]) -> str:
        """Text of a response without its eos; the think tags are kept."""
        kept = [t for t in tokens if t != self.eos_id]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @property
    def chat_template(self) -> str:
        """The same format as a Jinja template, for other programs: `enable_thinking` false prefills the empty block."""
        user_open, user_close, eos = (repr(t) for t in (self.format.user_open, self.format.user_close, self.format.eos))
        return (
            "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- " + user_open + " -}}"
            "{%- if m.content is string -%}{{- m.content -}}{%- else -%}"
            "{%- for c in m.content if c.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}"
            "{%- for c in m.content if c.type == 'text' -%}{{- c.text -}}{%- endfor -%}{%- endif -%}{{- "
            + user_close
            + " -}}"
            "{%- elif m.role == 'assistant' -%}{{- (m.content if m.content is string else m.content[0].text) + "
            + eos
            + " -}}"
            "{%- endif -%}{%- endfor -%}"
            "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think></think>' -}}{%- endif -%}"
        )
