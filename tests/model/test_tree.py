"""The tree equals the dense path in log-probabilities and gradients, over forks, several images, unequal branches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lineside.model.render import BLANK
from lineside.model.tree import ANSWER, NONE, TRACE, Node, fill, pack, share_prefixes
from tests.conftest import make_tiny_vlm
from tests.dense import dense_logprobs


def tree_of(vlm, images: int, first: int, branches: list[tuple[int, list[int]]]) -> Node:
    """A frame with `images` pictures; each branch is (question length, lengths of its responses)."""
    generator = torch.Generator().manual_seed(first * 7 + len(branches))
    words = lambda n: tuple(torch.randint(300, 380, (n,), generator=generator).tolist())  # noqa: E731
    questions = []
    for asked, responses in branches:
        leaves = tuple(
            Node(words(length), roles=tuple((TRACE if i < length // 2 else ANSWER) for i in range(length)), leaf=j)
            for j, length in enumerate(responses)
        )
        questions.append(Node(words(asked), children=leaves))
    return Node(
        vlm.render.prefix([BLANK] * images), images=tuple(range(first, first + images)), children=tuple(questions)
    )


TARGETS = 7 + 3 + 11 + 1 + 4 + 20 + 2 + 20 + 6 + 4 + 9 + 2 + 5


def with_references(vlm, first: int) -> Node:
    """A frame with a plain question, one beside a reference picture, and two that share two reference pictures."""
    plain = tree_of(vlm, 1, first, [(6, [4])])
    one = replace(tree_of(vlm, 1, first + 1, [(3, [9])]), tokens=(301, *vlm.render.prefix([BLANK])[1:]))
    two = replace(
        tree_of(vlm, 2, first + 2, [(7, [2]), (5, [5])]), tokens=(302, *vlm.render.prefix([BLANK] * 2)[1:], 303)
    )
    return replace(plain, children=(*plain.children, one, two))


def cases(vlm) -> list[Node]:
    return [
        tree_of(vlm, 1, 0, [(5, [7, 3, 11]), (2, [1])]),
        with_references(vlm, 1),
        tree_of(vlm, 2, 5, [(9, [4]), (3, [20, 2]), (14, [5, 5, 5, 5])]),
        tree_of(vlm, 0, 7, [(4, [6])]),
    ]


def features_for(trees: list[Node]) -> torch.Tensor:
    """Seeded features of the cases' pictures, which are numbered in the order of the nodes."""
    assert [i for tree in trees for node in tree.nodes() for i in node.images] == [0, 1, 2, 3, 4, 5, 6]
    return torch.randn(7, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("lm", ["llama", "qwen2", "qwen3"])
def test_packed_equals_dense_in_logprobs_and_gradients(lm: str) -> None:
    vlm = make_tiny_vlm(lm=lm)
    vlm.model.model.language_model.requires_grad_(True)
    trees = cases(vlm)
    features = features_for(trees)
    trained = [p for p in vlm.model.parameters() if p.requires_grad]

    packed = vlm.logprobs(vlm.pack(trees), features)
    gradients = torch.autograd.grad(-packed.mean(), trained, allow_unused=True)
    dense = torch.cat(dense_logprobs(vlm, trees, features))
    expected = torch.autograd.grad(-dense.mean(), trained, allow_unused=True)

    assert packed.shape == dense.shape == (TARGETS,)
    torch.testing.assert_close(packed, dense, atol=2e-5, rtol=1e-5)
    assert sum(g is not None for g in gradients) > 20
    for got, want in zip(gradients, expected):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-3)


def test_checkpointing_changes_no_number() -> None:
    vlm = make_tiny_vlm()
    vlm.model.model.language_model.requires_grad_(True)
    pack, features = vlm.pack(cases(vlm)), features_for(cases(vlm))
    trained = [p for p in vlm.model.parameters() if p.requires_grad]

    def run(checkpointing: bool) -> tuple[torch.Tensor, ...]:
        vlm.checkpointing = checkpointing
        logprobs = vlm.logprobs(pack, features)
        return logprobs, *torch.autograd.grad(-logprobs.mean(), trained)

    for kept, again in zip(run(False), run(True)):
        assert torch.equal(kept, again)


def test_how_trees_are_packed_changes_nothing() -> None:
    vlm = make_tiny_vlm()
    trees = cases(vlm)
    features = features_for(trees)
    together = vlm.logprobs(vlm.pack(trees), features)
    apart = torch.cat(
        [vlm.logprobs(vlm.pack([tree]), features[[i for n in tree.nodes() for i in n.images]]) for tree in trees]
    )
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=1e-5)


def test_positions_sources_and_targets_by_hand() -> None:
    tree = Node(
        (9, 9),
        children=(
            Node((5,), roles=(ANSWER,), leaf=0),
            Node((6, 7), roles=(NONE, TRACE), leaf=1, children=(Node((8,), roles=(ANSWER,), leaf=2),)),
        ),
    )
    p = pack([tree, Node((1, 2), roles=(NONE, ANSWER), leaf=3)], image_token=9)
    assert p.tokens.tolist() == [9, 9, 5, 6, 7, 8, 1, 2]
    assert p.positions.tolist() == [0, 1, 2, 2, 3, 4, 0, 1]
    assert p.responses == 4
    assert p.end.tolist() == [5, 5, 2, 5, 5, 5, 7, 7]
    assert p.source.tolist() == [1, 3, 4, 6]  # the fork's first token is predicted from the prefix's last
    assert p.target.tolist() == [5, 7, 8, 2]
    assert p.role.tolist() == [ANSWER, TRACE, ANSWER, ANSWER]
    assert p.leaf.tolist() == [0, 1, 2, 3]
    assert p.image_slots.tolist() == [0, 1]
    assert p.dense_tokens == 3 * 5  # paths of 3, 5 and 2 tokens, padded to 5


def test_a_first_token_cannot_be_a_target() -> None:
    with pytest.raises(ValueError, match="nothing stands before it"):
        pack([Node((1,), roles=(ANSWER,))], image_token=9)


def test_fill_never_splits_a_tree_and_keeps_order() -> None:
    trees = [Node((1,) * n) for n in (3, 4, 5, 20, 1)]
    packs = list(fill(trees, 8))
    assert [[t.size() for t in p] for p in packs] == [[3, 4], [5], [20], [1]]


def test_shared_prefixes_change_no_number() -> None:
    vlm = make_tiny_vlm()
    order = tuple(range(300, 312))
    prompts = [(*order, 320, 321), (*order, 330), order, (301, 302), (301, 303, 304), (*order, 320, 340)]
    leaves = {p: (Node((350 + i, 351), roles=(ANSWER, ANSWER), leaf=i),) for i, p in enumerate(prompts)}
    features = torch.randn(1, 16, 16)
    plain = Node(
        vlm.render.prefix([BLANK]), images=(0,), children=tuple(Node(p, children=below) for p, below in leaves.items())
    )
    shared = Node(vlm.render.prefix([BLANK]), images=(0,), children=share_prefixes(leaves))
    assert plain.size() - shared.size() == 3 * 12  # the order stands once instead of four times
    by_leaf = []
    for tree in (plain, shared):
        packed = vlm.pack([tree])
        logprobs = vlm.logprobs(packed, features)
        by_leaf.append(torch.stack([logprobs[packed.leaf == i] for i in range(len(prompts))]))
    torch.testing.assert_close(*by_leaf, atol=2e-5, rtol=1e-5)
