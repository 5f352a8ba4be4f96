"""Answers for which only a teacher vouches: targets of the same kinds, or none."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lineside.data.taskfile import Answer, Task
from lineside.data.tasks import parse_teacher_answer, survey, unanswered
from lineside.types import Frame, Image, Meta


@pytest.mark.parametrize(
    ("answer", "text", "canonical"),
    [
        (Answer(kind="choice", options=("Intact", "torn")), "intact.", "Intact"),
        (Answer(kind="choice", options=("intact", "torn")), "dented", None),
        (Answer(kind="choice", options=("intact", "torn")), "intact or torn", None),
        (Answer(kind="number", tolerance=2), "07", "7"),
        (Answer(kind="number", tolerance=2), "seven", None),
        (Answer(kind="number", tolerance=2), "7.4", None),  # not at the resolution asked for
        (Answer(kind="number", resolution=10, unit="percent"), "40%", "40 percent"),
        (Answer(kind="number", unit="mm"), "2 kg", None),
        (Answer(kind="number"), "9" * 70, None),
        (Answer(kind="set"), "red, blue", "red, blue"),
        (Answer(kind="set"), "None", "none"),
        (Answer(kind="set"), "red, red", None),
        (Answer(kind="exact"), "Golden Delicious", "Golden Delicious"),
        (Answer(kind="exact"), "  ", None),
    ],
)
def test_told(answer: Answer, text: str, canonical: str | None) -> None:
    found = parse_teacher_answer(answer, text)
    assert (found and found[0]) == canonical
    if found:
        assert found[1].provenance == "teacher"


@pytest.mark.parametrize("words", [{"kind": "point", "mask_column": "m"}, {"kind": "choice", "options_column": "o"}])
def test_without_a_record_there_are_no_columns(words: dict) -> None:
    with pytest.raises(ValidationError, match="without a column"):
        Answer(**words)


def test_a_task_without_a_column_is_asked_of_the_teacher_alone() -> None:
    task = Task(
        family="bin", name="upright", phrasings=("Is the {item} upright?",), when="ask", answer=Answer(kind="exact")
    )
    frames = [
        Frame(str(n), Image(b""), family, {"item": item, "ask": ask}, Meta(), "train")
        for n, (family, item, ask) in enumerate(
            [("bin", "can", True), ("bin", "can", False), ("bin", None, True), ("box", "can", True)]
        )
    ]
    assert [unanswered(task, frame) for frame in frames] == [[("", "Is the can upright?")], [], [], []]
    assert all(not survey(task, frame).candidates for frame in frames)
