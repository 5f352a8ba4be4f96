"""The catalogue and the cells: what is held out stays out, whatever the week."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from lineside.sim.catalogue import COLOURS, KINDS, assortment, catalogue, distance, look_alikes
from lineside.sim.cells import FAMILIES, cells_of, fleet, light_of
from lineside.sim.chance import generator, hash_uniform

WEEKS = range(0, 40)


def test_catalogue_has_over_200_skus_each_with_its_own_description() -> None:
    skus = catalogue()
    assert len(skus) >= 200
    assert len({s.id for s in skus}) == len({s.description for s in skus}) == len(skus)
    assert all(2 <= len(s.description.split()) <= 4 for s in skus)
    assert {s.kind for s in skus} == set(KINDS) and {s.colour for s in skus} == set(COLOURS)


def test_every_sku_has_look_alikes_one_attribute_apart() -> None:
    skus = catalogue()
    for sku in skus:
        similar = look_alikes(sku, skus)
        assert similar and all(distance(sku, other) == 1 for other in similar)


def test_descriptions_are_spoken_in_the_agreed_order() -> None:
    sku = next(s for s in catalogue() if s.attributes == ("blue", "carton", "striped", "small"))
    assert sku.description == "small striped blue carton"
    assert next(s for s in catalogue() if s.attributes == ("red", "can", "", "")).description == "red can"


@pytest.mark.parametrize("week", [0, 1, 7, 39])
def test_held_out_skus_are_never_in_the_ordinary_assortment(week: int) -> None:
    seen, unseen = set(assortment(week, shifted=False)), set(assortment(week, shifted=True))
    assert seen and unseen and not seen & unseen
    assert not any(s.held_out for s in seen) and all(s.held_out for s in unseen)
    assert {s.kind for s in unseen} == set(KINDS)


def test_weeks_add_and_retire_skus_and_change_packaging() -> None:
    weeks = [set(assortment(week, shifted=False)) for week in WEEKS]
    added = [later - earlier for earlier, later in pairwise(weeks)]
    retired = [earlier - later for earlier, later in pairwise(weeks)]
    assert sum(map(bool, added)) > len(added) / 2 and sum(map(bool, retired)) > len(retired) / 2
    assert min(map(len, weeks)) > 150
    sku = catalogue()[0]
    assert len({sku.style(week, shifted=False) for week in WEEKS}) > 1


def test_shifted_packaging_is_worn_nowhere_else() -> None:
    for sku in catalogue():
        ordinary = {sku.style(week, shifted=False) for week in WEEKS}
        assert sku.style(0, shifted=True) not in ordinary


def test_cells_are_held_out_whole_with_floors_lights_and_totes_of_their_own() -> None:
    assert len({c.id for c in fleet()}) == len(fleet())
    for family in FAMILIES:
        seen, unseen = cells_of(family, shifted=False), cells_of(family, shifted=True)
        assert len(seen) == 9 and len(unseen) == 3
        assert not {c.id for c in seen} & {c.id for c in unseen}
    for attribute in ("floor_tint", "tote"):
        ordinary = {getattr(c, attribute) for c in fleet() if not c.held_out}
        assert not ordinary & {getattr(c, attribute) for c in fleet() if c.held_out}
    ordinary_lights = {c.light.tint for c in fleet() if not c.held_out}
    assert not ordinary_lights & {c.light.tint for c in fleet() if c.held_out}


def test_light_drifts_from_week_to_week_and_is_the_same_when_asked_again() -> None:
    cell = fleet()[0]
    assert light_of(cell, 3) == light_of(cell, 3) != light_of(cell, 4)


def test_chance_depends_on_names_alone() -> None:
    # Known numbers: they hold in every process, on every machine and in every release, or old seeds mean nothing.
    assert hash_uniform("a", 1) == pytest.approx(0.7070114025213184, abs=1e-15)
    assert hash_uniform("a", "b") != hash_uniform("ab", "")
    assert generator("a", 1).integers(1000, size=3).tolist() == generator("a", 1).integers(1000, size=3).tolist()
    spread = Counter(int(10 * hash_uniform("spread", k)) for k in range(5000))
    assert min(spread.values()) > 400 and set(spread) == set(range(10))
