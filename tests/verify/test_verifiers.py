"""Gold answers (1, exact), near misses (part credit, never exact) and attacks (0) for every kind of target."""

import math
from dataclasses import replace

import pytest

from lineside.types import Mask, Target
from lineside.verify.text import normalise
from lineside.verify.verifiers import (
    POINT_OUTSIDE,
    POINT_REACH,
    REPEATED,
    answer_to,
    target_problem,
    verify,
    with_truth,
)

NAME = Target("exact", "record", accepted=("Garant Ecological Milk", "garant milk"))
YES = Target("choice", "sim", accepted=("yes",), options=("yes", "no"))
STATE = Target("choice", "sim", accepted=("torn",), options=("intact", "dented", "torn", "open"))
TOP = Target("choice", "sim", accepted=("red can", "blue box"), options=("red can", "blue box", "white bottle"))
SLOTS = Target("set", "sim", accepted=("2", "5"), options=("1", "2", "3", "4", "5", "6"))
NOTHING = Target("set", "sim", options=("1", "2", "3"))
FREE_SET = Target("set", "record", accepted=("black and white carton", "red can"))
KIT = ("carton", "red can", "box", "3 mm screw")
MISSING = Target("set", "sim", accepted=("carton", "red can", "carton"), options=KIT, counted=True)
SCREWS = Target("set", "record", accepted=("3 mm screw", "3 mm screw", "battery"), counted=True)
NO_LACK = Target("set", "sim", options=KIT, counted=True)
BOTH = Target("set", "sim", accepted=("can", "can", "box"), options=("can", "box"), counted=True)
COUNT = Target("number", "sim", value=5, resolution=1, tolerance=2)
FILL = Target("number", "sim", value=72.0, resolution=10, tolerance=20, unit="percent")
WIDTH = Target("number", "record", value=75.0, resolution=1, tolerance=10, unit="mm")
WEIGHT = Target("number", "record", value=1250.0, resolution=50, tolerance=200, unit="g")
WAIT = Target("number", "record", value=90.0, resolution=1, tolerance=10, unit="s")
ANGLE = Target("number", "sim", value=1.0, resolution=1, tolerance=2, unit="degrees", period=360)
HALF_TURN = Target("number", "sim", value=178.0, resolution=2, tolerance=8, unit="degrees", period=180)
# a 10 x 10 grid whose rows 4 and 5 are on in columns 3 to 6
PICK = Target("point", "sim", x=0.5, y=0.5, mask=Mask(10, 10, (43, 4, 6, 4, 43)))

GOLD = [
    (NAME, "Garant Ecological Milk"),
    (NAME, "  garant  ECOLOGICAL\tmilk.\n"),
    (NAME, "Garant Milk"),
    (YES, "yes"),
    (YES, "Yes."),
    (STATE, "torn"),
    (TOP, "red can"),
    (TOP, "Blue Box"),
    (SLOTS, "2, 5"),
    (SLOTS, "5,2."),
    (NOTHING, "none"),
    (NOTHING, "None."),
    (FREE_SET, "red can, black and white carton"),
    (MISSING, "2 cartons, red can"),
    (MISSING, "2 carton, 1 red can."),
    (MISSING, "Red Can, 2x cartons"),
    (MISSING, "2 x carton, red can"),
    (MISSING, "2 \u00d7 cartons,red can"),
    (MISSING, "carton, carton, red can"),
    (MISSING, "carton, red can, 1 carton"),
    (SCREWS, "2 3 mm screws, battery"),
    (SCREWS, "3 mm screw, battery, 3 mm screw"),
    (NO_LACK, "none"),
    (COUNT, "5"),
    (COUNT, "5.0"),
    (COUNT, "+5."),
    (FILL, "70 percent"),
    (FILL, "70"),
    (FILL, "70%"),
    (FILL, "70.0 pct."),
    (WIDTH, "75"),
    (WIDTH, "75 mm"),
    (WIDTH, "75mm"),
    (WIDTH, "7.5 cm"),
    (WIDTH, "0.075 m"),
    (WIDTH, ".075 metres"),
    (WEIGHT, "1.25 kg"),
    (WEIGHT, "1,250 g"),
    (WEIGHT, "1250"),
    (WAIT, "1.5 min"),
    (WAIT, "90000 ms"),
    (ANGLE, "1"),
    (ANGLE, "361 degrees"),
    (ANGLE, "-359\u00b0"),
    (HALF_TURN, "358 deg"),
    (PICK, "0.5, 0.5"),
    (PICK, "0.30 0.40"),
    (PICK, "(0.69, 0.59)"),
    (PICK, "[.45,.55]"),
]

NEAR = [  # (target, answer, credit by hand)
    (COUNT, "4", 1 - 1 / 2),
    (COUNT, "6", 1 - 1 / 2),
    (COUNT, "5.4", 1 - 0.4 / 2),  # the prediction is not rounded to 5
    (COUNT, "4.999999", 1 - 0.000001 / 2),
    (FILL, "60 percent", 1 - 10 / 20),
    (FILL, "72 percent", 1 - 2 / 20),  # the unrounded truth is not the answer that was asked for
    (WIDTH, "8 cm", 1 - 5 / 10),
    (WEIGHT, "1.3 kg", 1 - 50 / 200),
    (ANGLE, "0 degrees", 1 - 1 / 2),
    (ANGLE, "360", 1 - 1 / 2),
    (HALF_TURN, "2 degrees", 1 - 4 / 8),
    (SLOTS, "2", 2 * 1 / (1 + 2)),
    (SLOTS, "2, 5, 6", 2 * 2 / (3 + 2)),
    (SLOTS, "2, 2", 2 * 1 / (2 + 2)),
    (SLOTS, "2, 2, 5", 2 * 2 / (3 + 2)),  # a member twice is one wrong member
    (MISSING, "carton, red can", 2 * 2 / (2 + 3)),  # the fault that was: exact with one carton of two
    (MISSING, "2 cartons", 2 * 2 / (2 + 3)),
    (MISSING, "3 cartons, red can", 2 * 3 / (4 + 3)),
    (MISSING, "999 cartons", 2 * 2 / (999 + 3)),
    (MISSING, "2 cartons, red can, battery", 2 * 3 / (4 + 3)),
    (MISSING, "cartons, red can", 2 * 1 / (2 + 3)),  # a plural without a count says no number
    (MISSING, "02 cartons, red can", 2 * 1 / (2 + 3)),
    (MISSING, "2cartons, red can", 2 * 1 / (2 + 3)),
    (MISSING, "1 cartons, red can", 2 * 1 / (2 + 3)),
    (MISSING, "-2 cartons, red can", 2 * 1 / (2 + 3)),
    (MISSING, "1000 cartons, red can", 2 * 1 / (2 + 3)),
    (MISSING, "two cartons, red can", 2 * 1 / (2 + 3)),
    (MISSING, "\u0662 cartons, red can", 2 * 1 / (2 + 3)),  # an Arabic-Indic two
    (SCREWS, "3 mm screw, battery", 2 * 2 / (2 + 3)),  # one screw, not three of something
    (BOTH, "can, box", 2 * 2 / (2 + 3)),  # every option is right, only a count is off
    (PICK, "0.5, 0.65", 0.5 * (1 - 0.05 / 0.1)),
    (PICK, "0.73, 0.64", 0.5 * (1 - math.hypot(0.03, 0.04) / 0.1)),
]

FIVE_THOUSAND = "5" * 5000
ATTACKS = [
    # empty and all but
    *[
        (t, text)
        for t in (NAME, YES, SLOTS, NOTHING, COUNT, PICK)
        for text in ("", " ", "\n\t", ".", " . ", ",", "\x00")
    ],
    *[
        (t, text)
        for t in (NAME, YES, SLOTS, NOTHING, COUNT, PICK)
        for text in ("\u200b", "\ud800", "<think>", "</think>")
    ],
    # several answers at once, every option listed
    (YES, "yes or no"),
    (YES, "yes, no"),
    (YES, "yes/no"),
    (YES, "yes\nno"),
    (YES, "yes yes"),
    (STATE, "intact or dented or torn"),
    (STATE, "intact, dented, torn, open"),
    (STATE, "torn, open"),
    (TOP, "red can or blue box"),
    (TOP, "red can, blue box"),
    (TOP, "red can, blue box, white bottle"),
    (MISSING, "9 cartons, 9 red cans, 9 boxes, 9 3 mm screws"),
    (MISSING, "carton, red can, box, 3 mm screw"),
    (MISSING, "2 cartons,, red can"),
    (MISSING, "2 cartons and red can"),
    (MISSING, "2"),
    (MISSING, "none"),
    (MISSING, "0 cartons"),
    (NO_LACK, "0"),
    (NO_LACK, "0 cartons"),
    (NO_LACK, "none, none"),
    (SLOTS, "1, 2, 3, 4, 5, 6"),
    (SLOTS, "1, 2, 3, 4, 5, 6, 7"),
    (SLOTS, "2 or 5"),
    (SLOTS, "2 and 5"),
    (SLOTS, "2, 5,"),
    (SLOTS, ",2,5"),
    (SLOTS, "none"),
    (NOTHING, "1"),
    (NOTHING, "1, 2, 3"),
    (NOTHING, "none, 1"),
    (NOTHING, "no"),
    (NOTHING, "nothing"),
    (COUNT, "4 or 5"),
    (COUNT, "4, 5, 6"),
    (COUNT, "5 5"),
    (COUNT, "4-6"),
    (COUNT, "1 2 3 4 5"),
    # substrings, wrappers, negations
    (NAME, "milk"),
    (NAME, "garant"),
    (NAME, "it is garant milk"),
    (NAME, "garant milk?"),
    (YES, "y"),
    (YES, "yesno"),
    (YES, "not yes"),
    (YES, "the answer is yes"),
    (YES, "yes.."),
    (YES, "'yes'"),
    (YES, "**yes**"),
    (YES, "yes it is"),
    (YES, "no, yes"),
    (STATE, "not torn"),
    (STATE, "tor"),
    (STATE, "tornado"),
    (COUNT, "the answer is 5"),
    (COUNT, "not 5"),
    (COUNT, "about 5"),
    (COUNT, "5 parts"),
    (COUNT, "five"),
    # numbers that are none
    *[
        (COUNT, text)
        for text in ("nan", "NaN", "inf", "Infinity", "-inf", "1e999", "5e0", "0x5", "5_0", "1_000", "0b101")
    ],
    *[
        (COUNT, text)
        for text in ("10/2", "2+3", "5!", "5,0", "5.0.0", "--5", "+-5", "- 5", "1e-999", "1,00", "()", "5..")
    ],
    (COUNT, "-5"),
    (COUNT, FIVE_THOUSAND),
    (COUNT, "0" * 5000 + "5"),
    (COUNT, "5." + "0" * 5000),
    (COUNT, "999999999999999"),
    (Target("number", "sim", value=1000, resolution=1, tolerance=2), "1_000"),
    (Target("number", "sim", value=1000, resolution=1, tolerance=2), "1 000"),
    # digits and letters of other scripts, homoglyphs
    (COUNT, "\u0665"),  # Arabic-Indic
    (COUNT, "\uff15"),  # full width
    (COUNT, "\u2464"),  # circled
    (COUNT, "\u2075"),  # superscript
    (COUNT, "\U0001d7d3"),  # mathematical bold
    (COUNT, "5\u200b"),
    (COUNT, "\u22125"),
    (YES, "\uff59\uff45\uff53"),
    (YES, "уes"),  # Cyrillic у
    (YES, "ye\u017f"),  # long s
    (YES, "yes\u200b"),
    (YES, "\u202eyes"),
    (NAME, "garant mil\u212a"),  # the kelvin sign, whose lower case is k
    (NAME, "garant m\u0130lk"),
    (SLOTS, "2\uff0c 5"),
    (PICK, "0\u066b5, 0.5"),
    # unit games
    (WIDTH, "75 kg"),
    (WIDTH, "75 cm"),
    (WIDTH, "75 percent"),
    (WIDTH, "75 mm mm"),
    (WIDTH, "75 mm 75 mm"),
    (WIDTH, "75 mm or 7.5 cm"),
    (WIDTH, "75 mm2"),
    (WIDTH, "75 mm/s"),
    (WIDTH, "mm"),
    (WIDTH, "mm 75"),
    (WEIGHT, "1250 mm"),
    (WEIGHT, "1250 kg"),
    (FILL, "0.7"),
    (FILL, "70 degrees"),
    (FILL, "7 of 10"),
    (COUNT, "5 mm"),
    (COUNT, "5%"),
    # angles
    (ANGLE, "359 degrees"),  # 2 degrees away, and the tolerance is 2
    (ANGLE, "359"),
    (ANGLE, "999999999999999"),
    # right modulo the period, and no angle that anybody measures
    (ANGLE, "721"),
    (ANGLE, "-1079 degrees"),
    (ANGLE, "360000000001"),
    (ANGLE, "360000000000001.004"),  # not even that: the digits behind the point are lost
    (HALF_TURN, "538"),
    (Target("number", "sim", value=1.0, resolution=1, tolerance=2, unit="degrees", period=90), "361"),
    (Target("number", "sim", value=1.0, resolution=1, tolerance=2, unit="degrees"), "359"),
    (Target("number", "sim", value=1.0, resolution=1, tolerance=2, unit="degrees"), "361"),
    # points
    (PICK, "0.9, 0.9"),
    (PICK, "0, 0"),
    (PICK, "1, 1"),
    (PICK, "1.5, 0.5"),
    (PICK, "-0.5, 0.5"),
    (PICK, "50%, 50%"),
    (PICK, "0.5"),
    (PICK, "0.5, 0.5, 0.5"),
    (PICK, "0.5, 0.5 or 0.4, 0.4"),
    (PICK, "(0.5, 0.5]"),
    (PICK, "((0.5, 0.5))"),
    (PICK, "nan, nan"),
    (PICK, "., ."),
    (PICK, "x=0.5, y=0.5"),
    # length
    *[(t, good + " " * 5000) for t, good in ((YES, "yes"), (SLOTS, "2, 5"), (COUNT, "5"), (PICK, "0.5, 0.5"))],
    (YES, "yes" * 2_000_000),
]


def label(value):
    return f"{value.kind}" if isinstance(value, Target) else repr(value)[:40]


@pytest.mark.parametrize("target, answer", GOLD, ids=label)
def test_gold_scores_one(target, answer):
    verdict = verify(answer, target)
    assert (verdict.reward, verdict.exact, verdict.reason) == (1.0, True, "exact")


@pytest.mark.parametrize("target, answer, credit", NEAR, ids=label)
def test_near_miss_earns_part_and_is_never_exact(target, answer, credit):
    verdict = verify(answer, target)
    assert verdict.reward == pytest.approx(credit, abs=1e-12)
    assert 0 < verdict.reward < 1 and not verdict.exact


@pytest.mark.parametrize("target, answer", ATTACKS, ids=label)
def test_attack_scores_nothing(target, answer):
    verdict = verify(answer, target)
    assert (verdict.reward, verdict.exact) == (0.0, False)
    assert verdict.reason and verdict.reason != "exact"


def test_every_target_of_the_table_is_sound():
    assert {target_problem(row[0]) for row in (*GOLD, *NEAR, *ATTACKS)} == {""}


@pytest.mark.parametrize("tolerance, credit", [(2, 0.0), (4, 0.5), (10, 0.8)])
def test_359_against_1_is_two_degrees_away(tolerance, credit):
    target = Target("number", "sim", value=1.0, resolution=1, tolerance=tolerance, unit="degrees", period=360)
    assert verify("359 degrees", target).reward == pytest.approx(credit)
    assert not verify("359 degrees", target).exact


def test_an_angle_may_be_told_as_a_turn_either_way():
    quarter = Target("number", "sim", value=1.0, resolution=1, tolerance=2, unit="degrees", period=90)
    bare = Target("number", "sim", value=1.0, resolution=1, tolerance=2, period=90)
    hours = Target("number", "sim", value=1.0, resolution=1, tolerance=2, unit="h", period=12)
    for target, right in ((quarter, "271"), (bare, "271"), (quarter, "-359"), (hours, "13 h"), (ANGLE, "-719")):
        assert verify(right, target).exact
    assert verify("37 h", hours).reason == verify("451", quarter).reason == "more than a turn away"


def test_truth_just_below_a_full_turn_is_asked_as_zero():
    target = Target("number", "sim", value=359.8, resolution=1, tolerance=4, unit="degrees", period=360)
    assert verify("0", target).exact and verify("360", target).exact
    assert verify("359", target).reward == pytest.approx(0.75)


def test_zero_tolerance_leaves_only_exact():
    target = Target("number", "sim", value=3, resolution=1, tolerance=0)
    assert verify("3", target).exact and verify("4", target).reward == 0.0


def test_radians_convert_but_not_exactly():
    verdict = verify("3.14159 rad", Target("number", "sim", value=180, resolution=1, tolerance=10, unit="deg"))
    assert not verdict.exact and verdict.reward == pytest.approx(1 - 0.000152 / 10, abs=1e-7)


def test_a_unit_in_no_table_must_be_spelled_as_asked():
    target = Target("number", "record", value=3, resolution=1, tolerance=2, unit="Layers")
    assert verify("3 layers", target).exact and verify("3", target).exact
    assert verify("3 rows", target).reason == "wrong unit"


def test_credit_of_a_point_falls_with_distance_and_stays_below_inside():
    rewards = [verify(f"0.5, {0.6 + 0.01 * i:.3f}", PICK).reward for i in range(12)]
    assert rewards[0] == pytest.approx(POINT_OUTSIDE) and rewards[-1] == 0.0
    assert rewards == sorted(rewards, reverse=True)
    assert verify(f"0.5, {0.6 + POINT_REACH:.3f}", PICK).reward == pytest.approx(0.0, abs=1e-9)


def test_every_pixel_of_a_mask_is_exact_and_no_other():
    on = {(row, column) for row in (4, 5) for column in (3, 4, 5, 6)}
    for row in range(10):
        for column in range(10):
            verdict = verify(f"{column / 10 + 0.05:.2f}, {row / 10 + 0.05:.2f}", PICK)
            assert verdict.exact == ((row, column) in on)


def test_a_run_that_wraps_over_rows_is_measured_as_tail_rows_and_head():
    # 4 x 4: pixel 6 to pixel 13, that is (1, 2) .. (3, 1)
    target = Target("point", "sim", x=0.1, y=0.6, mask=Mask(4, 4, (6, 8, 2)))
    assert verify("0.6, 0.3", target).exact and verify("0.1, 0.9", target).exact
    assert verify("0.45, 0.3", target).reward == pytest.approx(0.5 * (1 - 0.05 / 0.1))  # left of the tail, or down 0.2
    assert verify("0.55, 0.8", target).reward == pytest.approx(0.5 * (1 - 0.05 / 0.1))  # right of the head, or up 0.05


def test_full_rows_inside_a_run_are_seen_from_above():
    # 4 x 4: pixel 2 to pixel 13; above its full rows 1 and 2 the run is 0.05 away, its tail in row 0 is 0.4 away
    target = Target("point", "sim", x=0.6, y=0.1, mask=Mask(4, 4, (2, 12, 2)))
    assert verify("0.1, 0.2", target).reward == pytest.approx(0.5 * (1 - 0.05 / 0.1))


def test_outside_the_frame_earns_nothing_even_beside_the_mask():
    target = Target("point", "sim", x=0.9, y=0.5, mask=Mask(1, 2, (1, 1)))
    assert verify("1, 1", target).exact and verify("1.0, 0.0", target).exact
    for answer in ("1.01, 0.5", "0.9, 1.01", "1.000001, 0.5"):
        assert verify(answer, target).reason == "outside the frame"


def test_set_credit_without_a_universe_is_plain_f1():
    verdict = verify("red can, blue can, green can", FREE_SET)
    assert verdict.reward == pytest.approx(2 * 1 / (3 + 2)) and verdict.reason == "close"


def test_listing_all_is_right_when_all_are_right():
    target = Target("set", "sim", accepted=("a", "b"), options=("a", "b"))
    assert verify("b, a", target).exact


def test_no_character_outside_ascii_is_normalised_into_ascii():
    for code in range(0x80, 0x110000):
        assert not any(c.isascii() for c in normalise(chr(code))), hex(code)


BAD_TARGETS = [
    Target("set", "sim", accepted=("can", "can")),  # twice, and nothing says that they are counted
    Target("set", "sim", accepted=("can", "2 cans"), counted=True),
    Target("set", "sim", accepted=("carton",), options=("carton", "cartons"), counted=True),
    Target("set", "sim", accepted=("x can",), counted=True),
    Target("set", "sim", accepted=("can, box",), counted=True),
    Target("set", "sim", accepted=("tub", "tub"), options=("can",), counted=True),
    Target("choice", "sim", accepted=("yes",), options=("yes", "no"), counted=True),
    Target("set", "sim", accepted=("can",), counted="yes"),  # type: ignore[arg-type]
    Target("magic", "sim"),  # type: ignore[arg-type]
    Target("exact", "hearsay", accepted=("yes",)),  # type: ignore[arg-type]
    Target("exact", "sim"),
    Target("exact", "sim", accepted=("",)),
    Target("exact", "sim", accepted=("yes", " . ")),
    Target("exact", "sim", accepted="yes"),  # type: ignore[arg-type]
    Target("choice", "sim", accepted=("maybe",), options=("yes", "no")),
    Target("set", "sim", accepted=("a", "A")),
    Target("set", "sim", accepted=("a, b",)),
    Target("number", "sim", value=math.nan),
    Target("number", "sim", value=math.inf),
    Target("number", "sim", value="5"),  # type: ignore[arg-type]
    Target("number", "sim", value=True),
    Target("number", "sim", value=10**400),
    Target("number", "sim", value=5, resolution=0),
    Target("number", "sim", value=1e6, resolution=1e-9),
    Target("number", "sim", value=5, tolerance=-1),
    Target("number", "sim", value=5, tolerance=math.nan),
    Target("number", "sim", value=5, period=-360),
    Target("number", "sim", value=5, resolution=10, period=10),
    Target("number", "sim", value=5, unit=None),  # type: ignore[arg-type]
    Target("point", "sim"),
    Target("point", "sim", x=0.5, y=0.5, mask=Mask(2, 2, (4,))),
    Target("point", "sim", x=0.5, y=0.5, mask=Mask(2, 2, (1, 2))),
    Target("point", "sim", x=0.5, y=0.5, mask=Mask(2, 2, (-1, 5))),
    Target("point", "sim", x=0.5, y=0.5, mask=Mask(0, 0, ())),
    Target("point", "sim", x=0.5, y=0.5, mask=Mask(10**400, 1, (0, 10**400))),
    Target("point", "sim", x=0.1, y=0.1, mask=Mask(2, 2, (1, 3))),  # the representative is off the mask
    Target("point", "sim", x=math.nan, y=0.5, mask=Mask(2, 2, (0, 4))),
]


@pytest.mark.parametrize("target", BAD_TARGETS, ids=lambda t: f"{t.kind}-{target_problem(t)[:40]}")
def test_an_unsound_target_is_named_and_never_earned(target):
    assert target_problem(target)
    for answer in ("yes", "5", "0.5, 0.5", "none", "a"):
        verdict = verify(answer, target)
        assert verdict.reward == 0.0 and not verdict.exact and verdict.reason.startswith("bad target: ")


@pytest.mark.parametrize(
    ("wrong", "repeats", "others"),
    [
        (COUNT, ["5", "5.0", " 5 ."], ["4", "6", "five"]),
        (WEIGHT, ["1250", "1.25 kg"], ["1200", "1300 g", "1251"]),
        (ANGLE, ["1", "361"], ["2", "359"]),
        (YES, ["yes", "Yes."], ["no", "perhaps"]),
        (SLOTS, ["2, 5", "5, 2"], ["2", "2, 5, 6", "none"]),
        (MISSING, ["2 cartons, red can", "carton, carton, red can"], ["carton, red can"]),
        (PICK, ["0.35, 0.45"], ["0.9, 0.9"]),
    ],
    ids=lambda value: value.kind if isinstance(value, Target) else "",
)
def test_a_failed_answer_scores_nothing_however_it_is_written_and_others_are_not_scored(wrong, repeats, others):
    target = Target("not", "outcome", wrong=(wrong,))
    for answer in repeats:
        found = verify(answer, target)
        assert (found.reward, found.exact, found.scored, found.reason) == (0.0, False, True, REPEATED), answer
    for answer in others:
        found = verify(answer, target)
        assert (found.reward, found.exact, found.scored) == (0.0, False, False), answer
    assert verify("", target).scored and verify("9" * 5000, target).scored  # no answers at all
    assert answer_to(target) == "" and with_truth(target, repeats[0]) is None


def test_several_failed_answers_are_one_target():
    target = Target("not", "outcome", wrong=(COUNT, replace(COUNT, value=6)))
    assert [verify(answer, target).scored for answer in ("4", "5", "6", "7")] == [False, True, True, False]
