"""The text that the nano LM learns to look up from: a question's lists, said again in other orders."""

from __future__ import annotations

import random
from dataclasses import replace

from lineside.data.store import write_samples
from lineside.model.render import BLANK
from lineside.model.tree import ANSWER
from lineside.training.pretrain import document_tree, lists_in, read_documents, recitals
from lineside.types import Image, Meta
from tests.conftest import picture
from tests.test_stages import sample


def test_lists_are_a_questions_commas() -> None:
    policy = "Policy: unreadable label scrap, else intact restock, open inspect. Where does it go?"
    assert lists_in(policy) == [["unreadable label scrap", "else intact restock", "open inspect"]]
    assert lists_in("Kit: 1 red can, 2 blue 1.5 l tub, 3 red can. What is missing?") == [
        ["1 red can", "2 blue 1.5 l tub", "3 red can"]
    ]
    assert lists_in("How many red, blue parts are there?") == []
    assert lists_in("") == lists_in(", , ,") == []


def test_every_list_is_said_twice_more_and_supervised(tiny_vlm) -> None:
    kit = "Kit: 1 red can, 2 blue tub, 3 red can."
    group = [
        sample("caption", 0, 0, answer="one, two, three"),
        sample("qa", 0, 1, question=f"{kit} What is missing?"),
        sample("qa", 0, 2, question=f"{kit} Which slots are empty?"),
        sample("qa", 0, 3, question="Policy: open scrap, torn inspect, intact restock. Where does it go?"),
    ]
    nodes = recitals(tiny_vlm, group, random.Random(0))
    heads = [tiny_vlm.tokenizer.decode(node.tokens) for node in nodes]
    assert heads == [" 1 red can, 2 blue tub, 3 red can.", " open scrap, torn inspect, intact restock."]
    for node, head in zip(nodes, heads):
        (said,) = node.children
        assert set(said.roles) == {ANSWER}
        first, second, rest = tiny_vlm.tokenizer.decode(said.tokens).split(".")
        assert not rest and sorted(first.strip().split(", ")) == sorted(second.strip().split(", "))
        assert sorted(first.strip().split(", ")) == sorted(head.strip(" .").split(", "))
    assert recitals(tiny_vlm, group[:1], random.Random(0)) == ()


def test_frames_of_one_scene_are_documents_of_their_own(tmp_path) -> None:
    """A video is one scene of many pictures: what is said of one of them is not said of the others."""
    rows = [
        replace(one, meta=Meta(scene="one video"))
        for frame in range(3)
        for one in (sample("caption", frame, 0), sample("qa", frame, 0, question="how many?"))
    ]
    reference = Image(picture(9), "reference")
    rows.append(replace(rows[-1], id="beside", images=(*rows[-1].images, reference)))  # a second picture of the frame
    write_samples(tmp_path, rows)
    documents = read_documents([tmp_path])
    assert [[s.id for s in group] for group in documents] == [
        ["f0-caption-0", "f0-qa-0"], ["f1-caption-0", "f1-qa-0"], ["f2-caption-0", "f2-qa-0", "beside"]
    ]  # fmt: skip


def test_some_documents_are_captions_without_a_picture(tiny_vlm) -> None:
    group = [
        sample("caption", 0, 0, answer="2 red cans"),
        sample("caption", 0, 1, answer="3 blue tubs"),
        sample("qa", 0, 0, question="how many?", trace="left: 2 red can; right: 1 red can; so 3"),
    ]
    said = [document_tree(tiny_vlm, group, random.Random(seed)) for seed in range(400)]
    unseen = [document for document in said if not document.images]
    assert 0.1 < len(unseen) / len(said) < 0.2
    for document in said:
        pack = tiny_vlm.pack([document.tree])
        leaves = set(pack.leaf.tolist())
        pictures = len(document.images)
        assert len(pack.image_slots) == pictures * tiny_vlm.render.image_tokens(BLANK)
        assert leaves == ({0, 1, 2} if pictures else {0, 1})
