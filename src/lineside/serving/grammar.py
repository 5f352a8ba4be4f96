"""Answers of a stated form: JSON by a schema, or text by a regular expression. llguidance says which tokens may follow.

The form holds for the answer, not for the trace. A grammar is compiled once and kept while it is used; each row then
has a matcher of its own. Limits keep a hostile schema from holding up the other rows. Source: llguidance
(github.com/guidance-ai/llguidance).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

from lineside.errors import LinesideError
from lineside.machine import lacking

if TYPE_CHECKING:  # whoever only reads requests needs no torch
    from torch import Tensor

    from lineside.model.render import Renderer

KEPT = 64  # compiled grammars
MAX_NODES = 2000  # values in a schema: building one takes time that grows with their square
MAX_REGEX = 4096  # characters
MAX_TAIL = 256  # bytes that close a cut answer
LIMITS = {"initial_lexer_fuel": 200_000, "step_lexer_fuel": 20_000, "max_lexer_states": 20_000}  # some 10 ms at most
LIMITS |= {"max_grammar_size": 50_000}
# As Python's json.dumps writes it. Free white space would let a model write spaces without end.
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

Form = Literal["whole", "closed", "partial"]


class FormError(LinesideError):
    """The form that a request asks for is refused."""


def guidance() -> Any:
    """The llguidance package. Raises LinesideError where it is not installed."""
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise lacking(error.name or "llguidance", "`lineside serve`") from None
    return llguidance


def json_grammar(schema: dict[str, Any]) -> str:
    """The grammar of JSON that a schema allows. Raises FormError for a schema that is too large or cannot be read."""
    nodes, left = 0, [schema]
    while left:
        value: Any = left.pop()
        nodes += 1
        left += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if nodes > MAX_NODES:
        raise FormError(f"the schema has {nodes} values: at most {MAX_NODES}")
    try:
        return guidance().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=WRITTEN)
    except ValueError as error:  # such as half of a surrogate pair
        raise FormError(f"the schema cannot be read: {error}") from None


def regex_grammar(pattern: str) -> str:
    """The grammar of texts that a regular expression matches whole. Raises FormError for one that is too long
    or cannot be read."""
    if len(pattern) > MAX_REGEX:
        raise FormError(f"the regular expression has {len(pattern)} characters: at most {MAX_REGEX}")
    try:
        return guidance().LLMatcher.grammar_from_regex(pattern)
    except ValueError as error:
        raise FormError(f"the regular expression cannot be read: {error}") from None


class Grammars:
    """The grammars of one model. `vocabulary`: the number of tokens that the model gives logits for."""

    def __init__(self, render: Renderer, vocabulary: int) -> None:
        """Raises FormError for a tokenizer that is written in Python."""
        import torch

        self._package, self.vocabulary = guidance(), vocabulary
        from llguidance.hf import from_tokenizer

        from lineside.model.render import control_tokens

        tokenizer: Any = render.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise FormError("the model's tokenizer is written in Python: llguidance cannot read it")
        self._tokenizer: Any = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=render.eos_id)
        self._limits = self._package.LLParserLimits(**LIMITS, verbose_errors=False)
        control = sorted({*control_tokens(tokenizer).values()} - {render.eos_id})
        self._writable = torch.ones(vocabulary, dtype=torch.bool)
        self._writable[[token for token in control if token < vocabulary]] = False
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def matcher(self, grammar: str) -> Matcher:
        """A matcher at the beginning of an answer. Raises FormError with the reason why llguidance refuses it."""
        if grammar not in self._kept:
            made = self._package.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
            first = Matcher(made.deep_copy(), self._tokenizer, self._writable)
            first.take(int(first.allowed().byte().argmax()))  # some are refused only at the first token, or behind it
            first.allowed()
            self._kept[grammar] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        return Matcher(self._kept[grammar].deep_copy(), self._tokenizer, self._writable)


class Matcher:
    """What one answer may still be."""

    def __init__(self, matcher: Any, tokenizer: Any, writable: Tensor) -> None:
        self._matcher, self._tokenizer, self._writable = matcher, tokenizer, writable

    def allowed(self) -> Tensor:
        """(V,) bool: the tokens that may follow. Raises FormError where the grammar is refused or too costly."""
        import torch

        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise FormError(_reason(self._matcher.get_error()))
        on = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        allowed = on.flatten()[: len(self._writable)].bool() & self._writable
        if not allowed.any():
            raise FormError("the answer's form leaves no token to write")
        return allowed

    def take(self, token: int) -> None:
        """Count a token that was written."""
        self._matcher.consume_token(token)

    def closed(self, text: str) -> tuple[Form, str]:
        """Of an answer that has ended with `text`: whether it has its form, and what must be added to it.

        "whole": all of it was written. "closed": it was cut, and closing it adds nothing that the grammar does not
        force but the end of a text, an object or a list. "partial": it was cut where that is not possible: a value is
        missing, or a number may have more digits.
        """
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return "whole", ""
        ends, inside = _in_text(text)
        if not text or not ends or (not inside and text[-1:].isascii() and text[-1:].isdigit() and self._takes("0")):
            return "partial", ""
        matcher, tail = self._matcher.deep_copy(), bytearray()
        while not matcher.is_accepting():
            forced = matcher.compute_ff_bytes()
            options = [forced] if forced else [b'"'] if inside and not tail else [b"}", b"]"]
            found = next((option for option in options if _consumes(matcher, self._tokenizer, option)), None)
            if found is None or len(tail) > MAX_TAIL:
                return "partial", ""
            tail += found
        return "closed", tail.decode("utf-8", "replace")

    def _takes(self, text: str) -> bool:
        return _consumes(self._matcher.deep_copy(), self._tokenizer, text.encode())


def _consumes(matcher: Any, tokenizer: Any, data: bytes) -> bool:
    """Whether a matcher takes these bytes; it has then taken them."""
    tokens = [token for byte in data for token in tokenizer.tokenize_bytes(bytes([byte]))]
    if matcher.validate_tokens(tokens) < len(tokens):
        return False
    return bool(matcher.consume_tokens(tokens))


def _in_text(json_text: str) -> tuple[bool, bool]:
    """(whether a piece of JSON ends where it can be closed: not behind a backslash; whether that is within a text)."""
    inside = escaped = False
    for char in json_text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = inside
        elif char == '"':
            inside = not inside
    return not escaped, inside


def _reason(error: str) -> str:
    """llguidance's reason, without the state of its parser."""
    return " ".join(error.split("<non-verbose/>")[0].split())[:300] or "the form is too complex"
