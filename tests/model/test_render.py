"""The renderer: outside text never becomes control, and the chat template writes the renderer's tokens or raises."""

from __future__ import annotations

import ctypes
import functools
import gc
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from PIL import Image as PILImage
from transformers import AutoProcessor, AutoTokenizer

from lineside.errors import LinesideError
from lineside.model.checkpoint import save
from lineside.model.render import BLANK, IMAGE, THINK_CLOSE, THINK_OPEN, Renderer, control_tokens
from lineside.types import Image
from tests.conftest import make_tiny_vlm
from tests.model.tokenizers import KINDS

FULL = ("nano", "chatml", "chatml-words", "chatml-bos", "headers")  # kinds whose template takes every prompt
ORDINARY = "How many red cans (2 kinds)?\n\n<b>3</b> < 4 | état 数える 🙂 "


@functools.cache
def renderer(kind: str) -> Renderer:
    tokenizer = KINDS[kind]()
    return Renderer(tokenizer, lambda image: (tokenizer.get_vocab()[IMAGE],) * 3)


def full(render: Renderer, pictures: int, question: str, trace: str | None, answer: str) -> tuple[int, ...]:
    """A whole sample as one sequence: prefix, question, response."""
    head = render.prefix([BLANK] * pictures) + render.question(question, thinking=trace is not None)
    return head + render.response(trace, answer).tokens


# --- memory


class _Heap(ctypes.Structure):
    """mallinfo2(3): ten counts of bytes, of which the fifth and the eighth are in use."""

    _fields_ = (("counts", ctypes.c_size_t * 10),)


def _in_use() -> int:
    gc.collect()
    count = ctypes.CDLL(None).mallinfo2
    count.restype = _Heap
    return count().counts[4] + count().counts[7]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc counts its heap")
def test_a_renderer_that_is_gone_leaves_no_words_in_memory() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh", k=9)) for _ in range(2000)]  # of one word each
    texts += [f"{text} {THINK_OPEN}" for text in texts[:1000]]  # encoded by the tokenizer without added tokens

    def use() -> None:
        render = Renderer(KINDS["nano"](), lambda image: (0,))
        for text in texts:
            render.encode_untrusted(text)

    use()  # what stays once
    before = _in_use()
    for _ in range(4):
        use()
    assert _in_use() - before < 4 * 100_000


# --- outside text


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_keeps_the_tokenizers_ids(kind: str) -> None:
    render = renderer(kind)
    assert list(render.encode_untrusted(ORDINARY)) == render.tokenizer.encode(ORDINARY, add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_no_control_token_comes_out_of_outside_text(kind: str, data: st.DataObject) -> None:
    render = renderer(kind)
    control = control_tokens(render.tokenizer)
    written = st.sampled_from(sorted(control)).flatmap(
        lambda t: st.sampled_from([t, t.upper(), t.title(), f" {t} ", t.replace("<", "＜"), t[1:], t[:-1], t * 2])
    )
    text = "".join(data.draw(st.lists(written | st.text(max_size=4), min_size=1, max_size=6)))
    unknown = {control["<unk>"]} if kind.startswith("unigram") else set[int]()
    assert set(render.encode_untrusted(text)) & set(control.values()) <= unknown
    answer = render.response(text, text)
    marks = {render.think_open, render.think_close, render.eos_id}
    assert set(answer.tokens) & set(control.values()) <= marks | unknown
    assert [answer.tokens.count(t) for t in (render.think_open, render.think_close, render.eos_id)] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["nano", "chatml", "headers", "plain"])
def test_control_tokens_in_a_question_stay_readable_text(kind: str) -> None:
    render = renderer(kind)
    text = "".join(control_tokens(render.tokenizer)) + " how many?"
    assert render.tokenizer.decode(list(render.encode_untrusted(text))) == text
    question = render.question(f"how many {IMAGE}? {render.format.user_close}9{render.format.eos}", thinking=True)
    assert question.count(render.image_id) == 0 and question.count(render.eos_id) == render._close.count(render.eos_id)


def test_half_a_surrogate_pair_is_text_too() -> None:
    render = renderer("nano")
    assert render.tokenizer.decode(list(render.encode_untrusted("a \ud83d b"))) == "a \ufffd b"


def test_a_character_that_is_a_control_token_is_refused() -> None:
    tokenizer = KINDS["plain"]()
    tokenizer.add_tokens(["?"], special_tokens=True)  # the id of the vocabulary's own question mark
    with pytest.raises(LinesideError, match=r"has only a control token for the character '\?'"):
        Renderer(tokenizer, lambda image: ()).encode_untrusted("how many?")


# --- the template


def parts(pictures: int, *texts: str) -> list[dict[str, str]]:
    return [{"type": "image"}] * pictures + [{"type": "text", "text": text} for text in texts]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def written(render: Renderer, messages: list[Any], **options: Any) -> tuple[int, ...]:
    """The tokens of what the template writes, pictures expanded as a processor does."""
    options = {"add_generation_prompt": True, "chat_template": render.chat_template(), "tokenize": False, **options}
    text = render.tokenizer.apply_chat_template(messages, **options)
    assert isinstance(text, str)
    text = text.replace(IMAGE, IMAGE * render.image_tokens(BLANK))
    return tuple(render.tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_template_writes_every_prompt_of_training(kind: str, thinking: bool, pictures: int) -> None:
    render = renderer(kind)
    for question in ("how many red cans are in the bin?", "3", "(état) 数える🙂?", "Fill level?\n- bin 1\n\n- bin 2:"):
        want = render.prefix([BLANK] * pictures) + render.question(question, thinking=thinking)
        assert written(render, [user(parts(pictures, question))], enable_thinking=thinking) == want
        assert written(render, [user(parts(pictures, question[:2], question[2:]))], enable_thinking=thinking) == want
    if not pictures:
        assert written(render, [user("how many?")]) == render.prefix([]) + render.question("how many?", thinking=True)


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("thinking", [True, False])
def test_the_template_writes_references_as_training_does(kind: str, thinking: bool) -> None:
    render = renderer(kind)
    can, box = (Image(b"", "reference", name=name, text=text) for name, text in (("red can", ""), ("4711", "of 0.5 l")))
    frame, picture = Image(b""), {"type": "image"}
    content = [picture, {"type": "text", "text": "red can:"}, picture, picture]
    content += [{"type": "text", "text": "4711 (of 0.5 l):"}, picture, {"type": "text", "text": "how many?"}]
    want = render.head([frame, can, can, box]) + render.question("how many?", thinking=thinking)
    template = render.chat_template(labels=True)
    assert written(render, [user(content)], chat_template=template, enable_thinking=thinking) == want
    side = Image(b"", "view", name="red can")  # a view of that name is written in the same way
    assert written(
        render, [user([*content[:3], content[-1]])], chat_template=template, enable_thinking=thinking
    ) == render.head([frame, side]) + render.question("how many?", thinking=thinking)
    plain = [user(parts(2, "how many?"))]
    assert written(render, plain, chat_template=template) == written(render, plain)
    for bad, options in ((content, {}), (content[1:], {"chat_template": template})):
        with pytest.raises(TemplateError, match="a picture behind text"):
            written(render, [user(bad)], **options)
    content[1] = {"type": "text", "text": f"a {IMAGE}:"}
    with pytest.raises(TemplateError, match="control token"):
        written(render, [user(content)], chat_template=template)


@pytest.mark.parametrize("kind", FULL)
def test_the_template_writes_whole_samples(kind: str) -> None:
    render = renderer(kind)
    asked = user(parts(1, "how many?"))

    def row(reply: dict[str, Any]) -> tuple[int, ...]:
        return written(render, [asked, {"role": "assistant", **reply}], add_generation_prompt=False)

    traced = full(render, 1, "how many?", "left 1; right 2", "3")
    assert row({"content": f"{THINK_OPEN}left 1; right 2{THINK_CLOSE}3"}) == traced
    assert row({"content": "3", "reasoning_content": "left 1; right 2"}) == traced
    assert row({"content": parts(0, "3"), "reasoning": "left 1; right 2"}) == traced
    plain = full(render, 1, "how many?", None, "3 parts")
    assert row({"content": "3 parts"}) == row({"content": parts(0, "3", " parts")}) == plain
    assert row({"content": f"{THINK_OPEN}{THINK_CLOSE}3 parts"}) == plain


ASKED = user(parts(1, "how many?"))
NEVER_SEEN: dict[str, tuple[list[Any], str]] = {
    "system": ([{"role": "system", "content": "Answer in one word."}, ASKED], "role 'system'"),
    "developer": ([{"role": "developer", "content": parts(0, "Be brief.")}, ASKED], "role 'developer'"),
    "tool": ([ASKED, {"role": "tool", "content": parts(0, "2")}], "role 'tool'"),
    "answer first": ([{"role": "assistant", "content": "2"}, ASKED], "several turns"),
    "two turns": ([ASKED, {"role": "assistant", "content": "2"}, user("and red ones?")], "several turns"),
    "a picture later": ([ASKED, {"role": "assistant", "content": "2"}, user(parts(1, "and here?"))], "several turns"),
    "two questions": ([ASKED, user("and red ones?")], "several turns"),
    "answered": ([ASKED, {"role": "assistant", "content": "2"}], "nothing is left to generate"),
    "tool call": ([ASKED, {"role": "assistant", "content": "", "tool_calls": [{"x": 1}]}], "tool_calls"),
    "no answer": ([ASKED, {"role": "assistant"}], "no answer"),
    "picture in the answer": ([ASKED, {"role": "assistant", "content": parts(1, "2")}], "part of type 'image' in the"),
    "text first": ([user([*parts(0, "compare"), *parts(1, "with")])], "a picture behind text"),
    "video": ([user([{"type": "video"}, *parts(0, "how many?")])], "part of type 'video'"),
    "text part without text": ([user([{"type": "text", "content": "x"}])], "part of type 'text'"),
    "no type": ([user([{"text": "how many?"}])], "part of type"),
    "strings for parts": ([user(["how many?"])], "part of type"),
    "number": ([user(3)], "no question"),
    "nothing": ([user(None)], "no question"),
    "no text": ([user(parts(1))], "no question"),
    "empty": ([user(parts(1, " \n"))], "no question"),
}


@pytest.mark.parametrize("kind", ["nano", "chatml", "headers"])
@pytest.mark.parametrize("name", NEVER_SEEN)
def test_what_training_never_saw_is_refused(kind: str, name: str) -> None:
    messages, why = NEVER_SEEN[name]
    with pytest.raises(TemplateError, match=why):
        written(renderer(kind), messages)


@pytest.mark.parametrize("kind", ["nano", "chatml", "headers"])
def test_other_wishes_that_training_never_saw(kind: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x", "parameters": {"type": "object"}}}
    with pytest.raises(TemplateError, match="tools"):
        written(renderer(kind), [ASKED], tools=[tool])
    with pytest.raises(TemplateError, match="pass add_generation_prompt=True"):
        written(renderer(kind), [ASKED], add_generation_prompt=False)


@pytest.mark.parametrize("kind", ["nano", "chatml", "headers", "plain"])
def test_control_tokens_in_outside_text_are_refused(kind: str) -> None:
    render = renderer(kind)
    for token in sorted(control_tokens(render.tokenizer)):
        for content in (parts(1, f"how many? {token}9"), parts(1, "how many? " + token[:2], token[2:])):
            with pytest.raises(TemplateError, match="the text holds"):
                written(render, [user(content)])
        replies = [{"content": f"2{token}"}, {"content": "2", "reasoning_content": f"left{token}"}]
        for reply in replies:
            with pytest.raises(TemplateError, match="the text holds"):
                written(render, [ASKED, {"role": "assistant", **reply}], add_generation_prompt=False)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(data=st.data())
def test_the_template_is_right_or_raises(kind: str, data: st.DataObject) -> None:
    """On any text. What it refuses is said above and in `test_which_kinds_are_refused`."""
    render = renderer(kind)
    edges = st.sampled_from(["", " ", "\n", "\n\n", "?", ".", ":", "'s", "7", "ASSISTANT", "user", "\u0301"])
    pieces = st.lists(
        edges | st.text(max_size=5) | st.sampled_from(sorted(control_tokens(render.tokenizer))), max_size=5
    )
    question, trace, answer = ("".join(data.draw(pieces)) for _ in range(3))
    pictures, thinking = data.draw(st.integers(0, 2)), data.draw(st.booleans())
    asked = user(parts(pictures, question))
    try:
        prompt = written(render, [asked], enable_thinking=thinking)
    except TemplateError:
        return
    assert prompt == render.prefix([BLANK] * pictures) + render.question(question, thinking=thinking)
    try:
        row = written(
            render,
            [asked, {"role": "assistant", "content": answer, "reasoning_content": trace}],
            add_generation_prompt=False,
        )
    except TemplateError:
        return
    assert row == full(render, pictures, question, trace or None, answer)


def test_which_kinds_are_refused() -> None:
    """Where turns are set off by words alone, a tokenizer may merge a question with them: the template cannot be right.
    With pictures before it, GPT-2's way of cutting words keeps the question apart."""

    def takes(kind: str, content: Any) -> bool:
        try:
            return bool(written(renderer(kind), [user(content)]))
        except TemplateError as error:
            assert "which training never saw" in str(error)
            return False

    assert {kind for kind in KINDS if takes(kind, parts(1, "how many?"))} == {*FULL, "plain"}
    assert {kind for kind in KINDS if takes(kind, "how many?")} == {*FULL}
    assert {kind for kind in KINDS if takes(kind, parts(1, "\nhow many?\n"))} == {*FULL, "plain"}
    assert {kind for kind in KINDS if takes(kind, "\nhow many?")} == {"nano"}


@pytest.mark.parametrize("kind", ["chatml", "chatml-bos", "headers"])
def test_a_saved_processor_writes_the_prompt_with_its_defaults(tmp_path: Path, kind: str) -> None:
    """A tokenizer that puts a token before every text does not do so in a checkpoint: the template writes it."""
    vlm = make_tiny_vlm(tokenizer=KINDS[kind]())
    save(vlm, tmp_path / "checkpoint")
    processor = AutoProcessor.from_pretrained(tmp_path / "checkpoint", backend="pil")
    want = vlm.render.prefix([BLANK]) + vlm.render.question("is there a blue box?", thinking=True)
    picture = {"type": "image", "image": PILImage.new("RGB", (40, 40))}
    asked = [user([picture, {"type": "text", "text": "is there a blue box?"}])]
    ids = processor.apply_chat_template(asked, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"]
    assert tuple(ids[0]) == want
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    assert tuple(processor(text=text, images=[picture["image"]])["input_ids"][0]) == want
    alone = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    with pytest.raises(TemplateError, match="role 'system'"):
        alone.apply_chat_template([{"role": "system", "content": "x"}, asked[0]], add_generation_prompt=True)
