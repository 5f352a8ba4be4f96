"""The task file: what a cell is asked and how the answer is checked, written by its engineer in YAML (DESIGN 3).

One file holds `tasks` and, for frames whose teacher is a table of records, `captions` (sentences filled from the
record) and `table` (how the folder and its CSV are read). Adding a task needs no code.

The docstring of a key says what it does and gives an example. `lineside task keys` prints it from here.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from lineside.data.ranges import Range, overlapping, read_range, where_in
from lineside.data.tabular import Form
from lineside.data.template import slots
from lineside.data.times import NamePattern, check_form, check_zone, read_duration
from lineside.data.values import key_text
from lineside.errors import LinesideError
from lineside.strict import Strict, Tuple, build, read_yaml
from lineside.types import Costs, Split, Target
from lineside.verify.verifiers import with_truth


def _template(text: str) -> str:
    slots(text)
    return text


def _word(value: Any) -> Any:
    """A whole number as text; other values that YAML has converted must be in quotes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, bool | float):
        raise ValueError(f"YAML reads this as {key_text(value) or 'null'}, which is not text; write the word in quotes")
    return value


def _keys(mapping: Any) -> Any:
    """A mapping with its keys as text, the form in which values are looked up: 1, 1.0 and "1" are one key."""
    if not isinstance(mapping, dict):
        return mapping
    by_text = {key_text(key): value for key, value in mapping.items()}
    if None in mapping or len(by_text) < len(mapping):
        raise ValueError(
            "a key is empty (null); write the word in quotes" if None in mapping else "two keys are the same value"
        )
    return by_text


def _encoding(name: str) -> str:
    try:
        codecs.lookup(name)
        "".encode(name)
    except LookupError:
        raise ValueError(f"unknown text encoding {name!r}; common ones are utf-8, utf-16, cp1252") from None
    return name


def _time_from(text: str) -> str:
    if text != EXIF:
        NamePattern(text)
    return text


Word = Annotated[str, BeforeValidator(_word)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Template = Annotated[str, Field(min_length=1), AfterValidator(_template)]

MOST_TILES = 16  # of a region
MOST_VIEWS = 8  # of a row
EXIF = "exif"  # as `time_from`
PASS_ON = "{value}"  # as `otherwise`: the table's own value


class Section(Strict):
    """Base of every section. A key's docstring says what it does; its last line is an example that loads."""

    model_config = ConfigDict(use_attribute_docstrings=True)


# Which keys of `answer` each kind reads, besides kind, column, margin_column and (all but points) teacher_column.
_KEYS = {
    "exact": {"accepted_column"},
    "choice": {"accepted_column", "options", "options_column"},
    "set": {"options", "options_column", "counted"},
    "number": {"resolution", "tolerance", "unit", "period"},
    "point": {"mask_column"},
}


class Answer(Section):
    """Which column of the record holds the truth of a question, and how an answer is checked.

    A null truth is unknown, and the question is not asked. Without a column no record has the answer: a teacher behind
    an API is asked several times, and only answers on which it agrees with itself are used.
    """

    kind: Literal["exact", "choice", "set", "number", "point"]
    """How an answer is checked. exact: a text; spelling variants and case do not matter. choice: one of the options;
    true and false are yes and no. set: a list, in any order. number: at its resolution. point: [x, y] inside a mask.
    Example: {kind: exact, column: product}"""
    column: str | None = None
    """The column that holds the truth. Left out: only a teacher behind an API can answer.
    Example: {kind: exact, column: order_line.text}"""
    accepted_column: str | None = None
    """A list column with every right spelling; the answer is written as in `column`.
    Example: {kind: exact, column: top, accepted_column: free_names}"""
    counted: bool = False
    """A list in which members are counted: two cartons are not one. The column repeats a member, or holds
    {carton: 2, red can: 1}; the answer is "2 cartons, red can". Left out: a list of names, each once.
    Example: {kind: set, column: missing, options_column: kit_items, counted: true}"""
    options: Tuple[Word] = ()
    """The possible answers (choice, set). A question whose truth is not among them is not asked, and is counted.
    Example: {kind: choice, column: state, options: [ok, bent, torn]}"""
    options_column: str | None = None
    """A list column that holds the options, if they differ from frame to frame.
    Example: {kind: choice, column: action, options_column: actions}"""
    resolution: PositiveFloat = 1.0
    """Step at which a number is asked and judged: an exact answer equals the truth at this step. Truths close to a
    rounding boundary are not asked.
    Example: {kind: number, column: fill, resolution: 10, unit: percent}"""
    tolerance: PositiveFloat = 1.0
    """Distance from the truth at which the stage-3 reward of a number reaches 0: reward = 1 - distance / tolerance.
    It changes the reward only. It makes no answer exact and changes no accuracy; `resolution` does.
    Example: {kind: number, column: parts, tolerance: 2}"""
    unit: str = ""
    """Unit of a number, written after it. Answers in another unit of the same quantity are converted.
    Example: {kind: number, column: weight, unit: g}"""
    period: NonNegativeFloat = 0.0
    """Period of a number: 360 for an angle, 180 for a part with two equal ends; 0: none.
    Example: {kind: number, column: angle, unit: degrees, period: 360}"""
    mask_column: str | None = None
    """Column with the mask (height, width, runs) that an exact point must be in.
    Example: {kind: point, column: point, mask_column: mask}"""
    teacher_column: str | None = None
    """The column with a teacher's answers, if the table has both. Stage 2 then learns these answers, also where the
    truth is null; stage 3 and the suites use `column`, and `label` compares the two. Ignored with a teacher behind an
    API.
    Example: {kind: exact, column: product, teacher_column: said_by_model}"""
    margin_column: str | None = None
    """A true/false column. Where it is false, the truth is too uncertain and the question is not asked.
    Example: {kind: choice, column: full, options: [yes, no], margin_column: full_is_clear}"""

    @model_validator(mode="after")
    def _check(self) -> Answer:
        common = {"kind", "column", "margin_column"} | ({"teacher_column"} if self.kind != "point" else set())
        stray = self.model_fields_set - common - _KEYS[self.kind]
        if stray:
            raise ValueError(f"an answer of kind {self.kind} has no {', '.join(sorted(stray))}")
        if self.options and self.options_column:
            raise ValueError("give options or options_column, not both")
        if self.kind == "choice" and not (self.options or self.options_column):
            raise ValueError("a choice needs options, or an options_column that holds them")
        others = self.options_column or self.accepted_column or self.teacher_column
        if self.column is None and (self.kind == "point" or others):
            raise ValueError("an answer without a column has no record: it cannot be a point or name other columns")
        if self.teacher_column is not None and self.teacher_column == self.column:
            raise ValueError("teacher_column equals column: leave it out, and the record is the teacher")
        if self.kind == "point" and not self.mask_column:
            raise ValueError("a point needs a mask_column: the mask that an exact answer must be in")
        return self


class Stakes(Section):
    """Costs of mistakes, all in one unit of your choice: money, minutes or plain weights."""

    wrong: NonNegativeFloat = 1.0
    """Cost of a wrong answer that is neither a false pass nor a false stop.
    Example: {wrong: 2}"""
    false_pass: NonNegativeFloat | None = None
    """Cost of the normal answer where another is right: an incomplete kit is shipped. Left out: as `wrong`.
    Example: {false_pass: 20, false_stop: 1}"""
    false_stop: NonNegativeFloat | None = None
    """Cost of another answer where the normal one is right: a good kit is stopped. Left out: as `wrong`.
    Example: {false_pass: 20, false_stop: 1}"""
    refusal: NonNegativeFloat | None = None
    """Cost of a refusal: a person answers instead. Left out: a quarter of `wrong`.
    Example: {false_pass: 20, false_stop: 1, refusal: 0.5}"""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: object) -> object:
        if isinstance(data, dict) and "false_alarm" in data:
            raise ValueError("false_alarm is now called false_stop; false_pass is the cost of the opposite mistake")
        return data

    @property
    def costs(self) -> Costs:
        """Every cost, with defaults for those left out."""
        return Costs.of(self.wrong, false_pass=self.false_pass, false_stop=self.false_stop, refusal=self.refusal)


class Task(Section):
    """One kind of question."""

    family: Name
    """The cell or kind of picture that is asked; frames of other families are not.
    Example: family: shop"""
    name: Name
    """Name of the task: letters, digits, "_" and "-". The pair of family and name must be unique.
    Example: name: packing"""
    version: PositiveInt = 1
    """Raise it when the meaning of the question changes, so that older results are not compared with newer ones.
    Example: version: 2"""
    each: str | None = None
    """A list column. The question is asked once for each of its elements, and the element's keys become columns.
    Example: each: is_it"""
    when: str | None = None
    """A true/false column: the question is asked only where it is true.
    Example: when: has_label"""
    phrasings: Annotated[Tuple[Template], Field(min_length=1)]
    """Ways to ask. {column} is filled from the record, {a column} with its article. Each frame gets one of them.
    Example: phrasings: ["Is this {item}?", "Does the picture show {item}?"]"""
    answer: Answer
    """Which column holds the truth, and how an answer is checked: see its own keys.
    Example: answer: {kind: choice, column: same, options: [yes, no]}"""
    trace: Template | None = None
    """The reasoning to learn, filled like a phrasing. It names what is seen, not the question and not the answer alone.
    Example: trace: "it is sold {sold}; it belongs to the group {group}\""""
    thinking: bool | None = None
    """Whether the model thinks before it answers this task. Left out: yes, if the task has traces to learn from.
    false leaves out the traces of the simulator or of an API teacher; it cannot be combined with `trace`.
    Example: thinking: false"""
    normal: Word | None = None
    """The answer that means that all is well: it passes, any other answer stops the cell. `none` for an empty list.
    False passes and false stops are then reported separately. Left out: there is no normal answer.
    Example: normal: "yes\""""
    stakes: Stakes = Stakes()
    """Costs of mistakes: see its own keys. Expected costs and the advice of the report come from them.
    Example: stakes: {false_pass: 20, false_stop: 1}"""
    budget_ms: PositiveFloat = 1500.0
    """Milliseconds in which an answer is useful; the share of answers that are exact within them is reported.
    Example: budget_ms: 800"""
    per_frame: PositiveInt = 1
    """Most questions of this task for one frame; with `each` a list may have more elements.
    Example: per_frame: 2"""
    references: str | None = None
    """The column with the SKUs that the question names: a text, "|" between several, or a list; of the record or of the
    element. Their reference pictures stand beside the frame. Needs `table.references`; the simulator has its own.
    Example: references: item"""
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of one answer in a split. Questions with a more common answer are left out until it is reached.
    Suites keep weights that restore the natural shares. Left out: no limit.
    Example: max_share: 0.5"""

    @model_validator(mode="after")
    def _check(self) -> Task:
        answer = self.answer
        if answer.teacher_column is not None and self.trace is not None and answer.column in slots(self.trace):
            raise ValueError(
                f"trace holds {{{answer.column}}}, the truth, but the answer to learn is the teacher's: use "
                f"{{{answer.teacher_column}}} or what was seen"
            )
        truths = (answer.column, answer.accepted_column, answer.teacher_column)
        if self.references is not None and self.references in truths:
            raise ValueError(
                f"references: the column {self.references!r} holds the answer, and its pictures would give it away: "
                "name the column with what the question asks about"
            )
        if self.thinking is False and self.trace is not None:
            raise ValueError("thinking is false, but there is a trace to learn: leave out one of the two")
        if self.normal is not None:
            self._check_normal(self.normal)
        return self

    def _check_normal(self, normal: str) -> None:
        """The normal answer must be a possible answer of the task."""
        answer = self.answer
        if answer.kind == "point":
            raise ValueError("normal: a point has no normal answer")
        kept = Target(
            answer.kind,
            "record",
            options=answer.options,
            counted=answer.counted,
            unit=answer.unit,
            resolution=answer.resolution,
            value=0.0,
        )
        if with_truth(kept, normal) is None:
            offered = f"; expected one of {', '.join(answer.options)}" if answer.options else ""
            none = ", or none for the empty list" if answer.kind == "set" else ""
            raise ValueError(f"normal: {normal!r} is not an answer of kind {answer.kind}{offered}{none}")


class Captions(Section):
    """Sentences about a family's pictures, filled from the record (stage 1), with records as the teacher."""

    family: Name
    """The family that the sentences are about.
    Example: family: shop"""
    templates: Annotated[Tuple[Template], Field(min_length=1)]
    """The sentences. A frame gets at most as many captions as there are sentences, and never fewer captions than
    questions: write at least as many as a frame has questions.
    Example: templates: ["This is {product}.", "{product}, sold {sold}."]"""
    wrong: Tuple[str] = ()
    """Columns that can be changed to make a caption false, to measure whether the model sees the difference.
    Example: wrong: [product, sold]"""


class Column(Section):
    """A column of the record made from one of the table: renamed, mapped, or made readable."""

    column: str
    """The table's column.
    Example: {column: product}"""
    values: Annotated[dict[str, str | bool | int | float | None], BeforeValidator(_keys)] | None = None
    """What each value of the table becomes. A key may be a range of numbers: 0-10, <0, >=50; both ends are included,
    and an end that two ranges share belongs to the higher one.
    Example: {column: fill, values: {"0-10": empty, "10-90": partly filled, ">=90": full}}"""
    otherwise: str | bool | int | float | None = None
    """What a value without an entry becomes. Left out: unknown. "{value}": the value itself.
    Example: {column: state, values: {OK: ok, NOK: faulty}, otherwise: "{value}"}"""
    words: bool = False
    """Write names as words: Golden-Delicious and golden_delicious with a space.
    Example: {column: product, words: true}"""
    sentences: PositiveInt | None = None
    """Keep this many sentences of a long text.
    Example: {column: description, sentences: 1}"""
    type: Literal["text", "number", "bool", "list"] = "text"
    """Type of the cells of a CSV file, which are all text; a list has "|" between its members.
    Example: {column: parts, type: number}"""

    @model_validator(mode="after")
    def _check(self) -> Column:
        if self.values is None and self.otherwise is not None:
            raise ValueError("otherwise needs values: list the known values there")
        if isinstance(self.otherwise, str) and self.otherwise != PASS_ON and set("{}") & set(self.otherwise):
            raise ValueError(f'otherwise: {self.otherwise!r}: only "{PASS_ON}" passes the value on; no other braces')
        if pair := overlapping(self._ranges):
            raise ValueError(f"values: the ranges {pair[0]!r} and {pair[1]!r} overlap")
        return self

    @cached_property
    def _ranges(self) -> dict[str, Range]:
        return {key: found for key in self.values or () if (found := read_range(key))}

    @property
    def ranged(self) -> bool:
        """Whether a key of `values` is a range of numbers."""
        return bool(self._ranges)

    def entry(self, value: str) -> str | None:
        """The key of `values` for a value of the table: the value itself, else a range; None if there is none."""
        if self.values is not None and value in self.values:
            return value
        return where_in(value, self._ranges) if self._ranges else None


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _duration(value: Any) -> Any:
    return value if value is None or value == "auto" else read_duration(value)


Duration = Annotated[float, BeforeValidator(_duration)]
Zone = Annotated[str, AfterValidator(check_zone)]
TimeForm = Annotated[str, AfterValidator(check_form)]


class Join(Section):
    """A further table, whose columns are added to each row. With `on` alone: its row with the same value. With `time`:
    an event near the time of the frame. With `start`: what was open at that time. Where no row matches, or several do,
    these columns are empty, so their questions are not asked; `task check` and `label` count such frames.
    """

    file: str
    """The further table (.csv or .jsonl), beside the first.
    Example: {file: products.csv, on: product}"""
    on: str | Tuple[str] | dict[str, str] | None = None
    """The column that both tables have, or several; {cell: station} if the frames' `cell` is called `station` here.
    Without `time` or `start` each value occurs once in this table, and a frame without a partner is refused.
    Example: {file: order_lines.csv, on: {cell: station}, start: opened, end: closed}"""
    name: Name | None = None
    """Name of the table: its column weight is then called scale.weight. Left out: the columns keep their names; where
    the frames have a column of that name, it is theirs.
    Example: {file: scale.csv, name: scale, time: at, within: 2 s}"""
    time: str | None = None
    """The column with the time of an event: a reading, a pick. Needs `within`.
    Example: {file: scale.csv, on: cell, time: at, within: 2 s, several: nearest}"""
    within: Duration | None = None
    """Most time between frame and event (2 s, 500 ms, 10 min).
    Example: {file: scale.csv, on: cell, time: at, within: 2 s, several: nearest}"""
    side: Literal["before", "after", "either"] = "either"
    """Where the event lies, seen from the frame; an event at the same moment counts as both.
    Example: {file: picks.csv, on: cell, time: at, within: 30 s, side: after, several: first}"""
    start: str | None = None
    """The column with the time from which a row holds.
    Example: {file: order_lines.csv, on: cell, start: opened, end: closed}"""
    end: str | None = None
    """The column with the time from which it holds no more; an empty cell is still open. Left out: each row holds until
    the next one with the same `on` starts.
    Example: {file: order_lines.csv, on: cell, start: opened, end: closed}"""
    several: Literal["refuse", "nearest", "first", "last"] = "refuse"
    """What is taken if several rows match. refuse: none of them. nearest: the event nearest in time. first, last: the
    one that is first or last in time. Two that this does not tell apart are not taken.
    Example: {file: scale.csv, on: cell, time: at, within: 2 s, several: nearest}"""
    once: bool = False
    """Whether an event belongs to one frame only: the nearest of those that would take it.
    Example: {file: picks.csv, on: cell, time: at, within: 30 s, side: after, several: first, once: true}"""
    offset: Literal["auto"] | Duration | None = None
    """How far the clock of this table is ahead of the frames' (-3.2 s: behind); it is taken off its times. auto: as
    estimated from both tables, an error if they do not tell. Left out: 0, and the estimate is reported.
    Example: {file: scale.csv, on: cell, time: at, within: 2 s, offset: 3.2 s}"""
    clock: str | None = None
    """A column of this table that tells its clocks apart; each has an offset of its own. Left out: one clock.
    Example: {file: scale.csv, on: cell, time: at, within: 2 s, offset: auto, clock: cell}"""
    time_zone: Zone | None = None
    """Zone of the times here that have none, as for the frames. Left out: that of the frames.
    Example: {file: scale.csv, time: at, within: 2 s, time_zone: UTC}"""
    time_format: TimeForm | None = None
    """How the times here are written, as for the frames.
    Example: {file: scale.csv, time: at, within: 2 s, time_format: "%d/%m/%Y %H:%M:%S"}"""

    @property
    def keys(self) -> dict[str, str]:
        """The frames' column of each key, with this table's."""
        if self.on is None or isinstance(self.on, dict):
            return dict(self.on or {})
        return {name: name for name in ((self.on,) if isinstance(self.on, str) else self.on)}

    @property
    def by_time(self) -> bool:
        """Whether rows are found by the time of the frame."""
        return self.time is not None or self.start is not None

    @model_validator(mode="after")
    def _check(self) -> Join:
        given = self.model_fields_set
        if self.time is not None and self.start is not None:
            raise ValueError("give time (an event) or start (what is open), not both")
        if not self.by_time:
            if stray := sorted(given - {"file", "on", "name"}):
                raise ValueError(f"{', '.join(stray)}: belong to a join by time: name the column `time` or `start`")
            if not self.keys:
                raise ValueError("on: name the column that both tables have, or join by `time` or `start`")
        if self.time is not None and (self.within is None or self.within <= 0):
            raise ValueError("within: a join by `time` needs the most time between frame and event, such as 2 s")
        if self.start is not None and (stray := sorted(given & {"within", "side", "once"})):
            raise ValueError(f"{', '.join(stray)}: belong to `time`, the time of an event; `start` has an `end`")
        if self.end is not None and self.start is None:
            raise ValueError("end needs start")
        if self.start is not None and self.several == "nearest":
            raise ValueError("several: nearest belongs to events; with `start` write first or last")
        return self


class Distractors(Section):
    """A list column with elements {item, same}: the row's own value (same is true), and values of other rows by their
    frequency. A task with `each` asks "Is this {item}?" of it. Where the own value is null, every `same` is null too.
    """

    name: Name
    """Name of the new column.
    Example: {name: is_it, column: product}"""
    column: str
    """The column of the record from which the values come.
    Example: {name: is_it, column: product}"""
    count: PositiveInt = 1
    """Number of other values beside the row's own.
    Example: {name: is_it, column: product, count: 2}"""
    teacher_column: str | None = None
    """A column with a teacher's values of `column`: elements then also have `said`, whether the item is that value.
    Example: {name: is_it, column: product, teacher_column: said_by_model}"""
    near: str | None = None
    """Half of the other values come from rows with the same value in this column: another product of the same group.
    Example: {name: is_it, column: product, near: group}"""


class Splits(Section):
    """The data's own split (its column and our names for its values), or a split by hash."""

    column: str | None = None
    """The column that holds the split of a row.
    Example: {column: part, values: {train: train, test: heldout}}"""
    values: Annotated[dict[str, Split], BeforeValidator(_keys)] = Field(default_factory=dict)
    """Our name for each value of that column: train, dev (tuning), heldout (the suite), shifted (new SKUs).
    Example: {column: part, values: {train: train, val: dev, test: heldout}}"""
    by: Literal["scene", "cell", "camera", "day", "sku"] | None = None
    """Split by hash instead: all frames of a scene, cell, camera, day (of `time`) or SKU are in one split, and new
    frames move no others.
    Example: {by: camera}"""
    shares: dict[Split, NonNegativeFloat] | None = None
    """Shares of a split by hash; they sum to 1.
    Example: {by: scene, shares: {train: 0.7, dev: 0.1, heldout: 0.2}}"""
    salt: str = ""
    """Another text gives another split by hash.
    Example: {by: scene, salt: second draw}"""

    @model_validator(mode="after")
    def _check(self) -> Splits:
        if (self.column is None) == (self.by is None):
            raise ValueError("give either the data's own column with its values, or by; not both")
        if (self.column is None) != (not self.values):
            raise ValueError("column and values belong together")
        if self.column is not None and (self.shares or self.salt):
            raise ValueError("shares and salt belong to a split by hash")
        if self.shares is not None and "shifted" in self.shares:
            raise ValueError("shifted is held out whole, never drawn: mark its frames in a column of the data")
        if self.shares is not None and abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares must sum to 1, not {sum(self.shares.values()):g}")
        return self


def _box(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 4 and all(isinstance(v, int | float) for v in value):
        left, top, right, bottom = (float(v) for v in value)
        if 0 <= left < right and 0 <= top < bottom:
            return left, top, right, bottom
    raise ValueError(f"{value!r:.60}: expected [left, top, right, bottom], in pixels or in shares from 0 to 1")


Box = Annotated[tuple[float, float, float, float], BeforeValidator(_box)]


class Roi(Section):
    """The region of each picture that the model sees, cut at full resolution: a small part in a wide picture has more
    pixels then. Points are asked and answered within the region. The checkpoint states it, and `ask` cuts by it.
    """

    cameras: Annotated[dict[str, Box], BeforeValidator(_keys)] = Field(default_factory=dict)
    """The rectangle of each camera: left, top, right, bottom, in pixels or in shares of the picture (0 to 1). A frame
    of another camera is refused, unless there is a `box`.
    Example: {cameras: {cam1: [320, 180, 1600, 900], cam2: [0.1, 0, 0.9, 1]}}"""
    box: Box | None = None
    """The rectangle of all cameras that `cameras` does not list.
    Example: {box: [0.2, 0.1, 0.8, 0.9]}"""
    corners: str | None = None
    """The column with the corners of the tote in each picture, as [[x, y], ...] in pixels or shares: the region is
    their bounding box.
    Example: {corners: tote_corners, margin: 0.05}"""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Added on each side, as a share of the region's width and height; it ends at the edge of the picture.
    Example: {corners: tote_corners, margin: 0.05}"""
    tiles: Annotated[Tuple[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """[columns, rows]: the region is also cut into so many tiles, shown after it as further pictures. Each picture
    takes the encoder's number of tokens.
    Example: {box: [0.2, 0.1, 0.8, 0.9], tiles: [2, 2]}"""
    whole: bool = False
    """Whether the whole picture is shown too, behind the region and its tiles: the part at full resolution, and where
    it lies. Points are still those of the region.
    Example: {box: [0.2, 0.1, 0.8, 0.9], whole: true}"""

    def in_pixels(self, camera: str) -> bool:
        """Whether the fixed rectangle of a camera is in pixels, so that it fits pictures of one size only."""
        return max(self.cameras.get(camera, self.box) or (0.0,)) > 1

    @model_validator(mode="after")
    def _check(self) -> Roi:
        if self.corners is not None and (self.cameras or self.box):
            raise ValueError("give corners (found in each picture), or cameras and box (fixed); not both")
        if self.corners is None and not self.cameras and self.box is None and self.tiles is None:
            raise ValueError("give cameras, box or corners: which part of the picture; or tiles of all of it")
        if self.tiles is not None and not 1 < self.tiles[0] * self.tiles[1] <= MOST_TILES:
            raise ValueError(f"tiles: expected [columns, rows] with 2 to {MOST_TILES} tiles")
        return self


class References(Section):
    """Reference pictures of SKUs, and what the master data say of them. A task says by its own key `references` which
    SKUs a question names. So a new SKU can be asked about before any frame of it was labelled.
    """

    folder: str | None = None
    """The folder with the pictures, relative to the frames: a folder for each SKU, or one picture called by it
    (4711/front.jpg, 4712.jpg). With `image`: where the files named there are.
    Example: {folder: catalogue, most: 3}"""
    file: str | None = None
    """A table of SKUs (.csv, .jsonl) beside the frames, for their pictures, their texts or both.
    Example: {folder: catalogue, file: products.csv, sku: product, text: description}"""
    sku: str = "sku"
    """The column of that table with the SKU, as the questions name it.
    Example: {file: products.csv, sku: product, image: photo}"""
    image: str | None = None
    """The column of that table with the picture's file; several with "|" between them, or one in each row.
    Example: {file: products.csv, sku: product, image: photo}"""
    text: str | None = None
    """The column of that table with a short text of the master data, which stands before the SKU's pictures.
    Example: {folder: catalogue, file: products.csv, sku: product, text: description}"""
    most: PositiveInt = 1
    """Most pictures of a SKU in a question. Each takes the encoder's number of tokens.
    Example: {folder: catalogue, most: 3}"""

    @model_validator(mode="after")
    def _check(self) -> References:
        if self.folder is None and self.image is None:
            raise ValueError("give folder (pictures by SKU), or file with image: where are the pictures?")
        if self.file is None and (self.image is not None or self.text is not None):
            raise ValueError("image and text are columns of a table: give file")
        if self.file is not None and self.image is None and self.text is None:
            raise ValueError("file: say what it gives: image (the column with the pictures), text or both")
        return self


class Table(Section):
    """How inputs become frames. Names are columns of the rows."""

    file: str | None = None
    """The files with the rows, inside the folder: a table beside the pictures (.csv, .jsonl), Parquet with the pictures
    inside, WebDataset tars, videos; "*.parquet" for several. Left out: what the folder holds.
    Example: file: frames.csv"""
    family: Name
    """The family of these frames.
    Example: family: shop"""
    image: str = "image"
    """The column with the picture's file, or with the picture.
    Example: image: photo"""
    pictures: str | None = None
    """The folder in which the files named by `image` are, relative to the folder of the frames. Left out: that folder.
    Example: pictures: images"""
    encoding: Annotated[str, AfterValidator(_encoding)] | None = None
    """Text encoding of the tables. Left out: UTF-8, or the encoding of a byte-order mark.
    Example: encoding: cp1252"""
    delimiter: Annotated[str, Field(pattern='^[^"\\r\\n]$')] | None = None
    """Separator of the fields of a CSV file. Left out: comma, semicolon, tab or bar, found from header and rows.
    Example: delimiter: ";\""""
    decimal: Literal[".", ","] | None = None
    """The decimal sign in columns of type number; the other sign may then group thousands. Left out: found from all
    numbers of the table.
    Example: decimal: ",\""""
    time_format: TimeForm | None = None
    """How the column `time` is written, in Python's strptime codes. Left out: ISO 8601, year first, seconds since 1970,
    and day.month.year are read; day and month with slashes only if the table shows which comes first.
    Example: time_format: "%m/%d/%Y %H:%M\""""
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """Bits that the camera uses in a 16-bit grey picture. Left out: the fewest of 8, 10, 12, 14, 16 for the brightest
    pixel of all pictures of the same `camera`, so that they are scaled alike.
    Example: bits: 12"""
    roi: Roi | None = None
    """The region that the model sees of each picture, and its tiles: see its own keys. Left out: all of it.
    Example: roi: {box: [0.2, 0.1, 0.8, 0.9], tiles: [2, 2]}"""
    views: dict[Name, str] = Field(default_factory=dict)
    """Further pictures of the same scene: what each is called, and the column with its file. They stand behind the
    row's picture, under their names, in every question about it. An empty cell: that row lacks the view. A `roi` does
    not cut them.
    Example: views: {side: side_photo, top: top_photo}"""
    references: References | None = None
    """Reference pictures of SKUs that stand beside the frame in a question: see its own keys. Left out: none.
    Example: references: {folder: catalogue, most: 3}"""
    every: PositiveFloat = 1.0
    """Seconds between two frames of a video.
    Example: every: 0.5"""
    split: Splits | None = None
    """Which frames are for training and which for evaluation. Left out: by hash of the scene, 80% train, 10% dev, 10%
    heldout.
    Example: split: {column: part, values: {train: train, test: heldout}}"""
    join: Tuple[Join] = ()
    """Further tables, joined in this order: a later one may use the columns of an earlier one.
    Example: join: [{file: products.csv, on: product}]"""
    columns: dict[Name, Annotated[Column, BeforeValidator(_column)]] = Field(default_factory=dict)
    """The columns of the record, by the names that tasks and captions use. Left out: the table's own, as text.
    Example: columns: {product: {column: product, words: true}, group: group}"""
    distractors: Tuple[Distractors] = ()
    """List columns for yes-or-no questions: the row's own value and wrong ones.
    Example: distractors: [{name: is_it, column: product, near: group}]"""
    scene: str | None = None
    """Column with the scene of a picture: pictures of one scene are in one split. Left out: every picture is its own
    scene, and every video one scene.
    Example: scene: order_number"""
    cell: str | None = None
    """Column with the cell or station.
    Example: cell: station"""
    camera: str | None = None
    """Column with the camera; near-duplicates are searched within each camera.
    Example: camera: cam"""
    time: str | None = None
    """Column with the time of the picture, as 2026-01-31 or 2026-01-31T08:00:00.
    Example: time: taken_at"""
    time_from: Annotated[str, AfterValidator(_time_from)] | None = None
    """Where else the time of the picture stands. exif: when the camera took it, by the picture's EXIF block. Else the
    form of the file's name: strptime codes, %s for seconds since 1970, * for any text.
    Example: time_from: "cam*_%Y%m%d_%H%M%S\""""
    time_zone: Zone | None = None
    """Zone of the times that have none; needed to join them with times that have one. An hour that clocks show twice
    or skip is refused. Left out: times are compared as they stand.
    Example: time_zone: Europe/Berlin"""
    week: str | None = None
    """Column with the week, a number.
    Example: week: week"""
    skus: str | None = None
    """Column with the SKUs in the picture, with "|" between several.
    Example: skus: product"""
    by: Tuple[str] = ()
    """More columns by which results are shown: `evaluate --by` and the report say how often the model is exact for each
    of their values. Names of `columns`, else of the table. Cell, camera, week, SKU and day need not be listed.
    Example: by: [shift, operator]"""

    @model_validator(mode="after")
    def _check(self) -> Table:
        keys = {"sku": "skus", "day": "time", "hour": "time", "cell": "cell", "camera": "camera", "week": "week"}
        for name in self.by:
            if name in keys and getattr(self, keys[name]) != name:
                raise ValueError(f"by: results take {name!r} from the key `{keys[name]}`: set that key instead")
        if len(self.views) > MOST_VIEWS:
            raise ValueError(f"views: {len(self.views)} of them; expected at most {MOST_VIEWS}")
        if self.roi is not None and self.roi.cameras and self.camera is None:
            raise ValueError("roi: `cameras` needs `camera`, the column that says which camera took a picture")
        return self

    @property
    def form(self) -> Form:
        """How text tables are written."""
        return Form(self.encoding, self.delimiter, self.decimal)

    @property
    def uncut(self) -> Table:
        """The same without `roi`, for people: they see whole pictures, and records hold points of whole pictures."""
        return self.model_copy(update={"roi": None})

    @model_validator(mode="after")
    def _check_times(self) -> Table:
        if self.time is not None and self.time_from is not None:
            raise ValueError("give time (a column) or time_from, not both")
        if self.time_from is not None and self.time_format is not None:
            raise ValueError("time_format belongs to the column `time`; time_from says how the name is written")
        if any(join.by_time for join in self.join) and self.time is None and self.time_from is None:
            raise ValueError("join: a join by time needs the time of each frame: set time (a column) or time_from")
        names = [join.name for join in self.join if join.name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"join: two tables are called {', '.join(twice)}")
        return self


class TaskFile(Section):
    """A whole task file."""

    tasks: Annotated[Tuple[Task], Field(min_length=1)]
    """What is asked: one entry for each kind of question.
    Example: tasks: [{family: shop, name: group, phrasings: ["Which group?"], answer: {kind: exact, column: group}}]"""
    captions: Tuple[Captions] = ()
    """Sentences about the pictures (stage 1), where records are the teacher.
    Example: captions: [{family: shop, templates: ["This is {product}."]}]"""
    table: Table | None = None
    """How your own folder is read.
    Example: table: {file: frames.csv, family: shop}"""

    @model_validator(mode="after")
    def _check(self) -> TaskFile:
        names = [(task.family, task.name) for task in self.tasks]
        twice = sorted({f"{family}/{name}" for family, name in names if names.count((family, name)) > 1})
        if twice:
            raise ValueError(f"the task {', '.join(twice)} occurs twice here")
        if self.table is not None and self.table.roi is not None:
            self._check_points()
        named = [f"{task.family}/{task.name}" for task in self.tasks if task.references]
        if named and self.table is not None and self.table.references is None:
            raise ValueError(
                f"task {named[0]}: references: the table says nowhere where the pictures are: add `references`"
            )
        if not named and self.table is not None and self.table.references is not None:
            raise ValueError(
                "table: references: no task says which SKUs its question names: add `references` to a task"
            )
        return self

    def _check_points(self) -> None:
        """A point is asked within the region, so no text may hold the columns that have it for the whole picture."""
        texts = [(f"captions of {c.family}", text) for c in self.captions for text in c.templates]
        for task in self.tasks:
            texts += [(f"task {task.name}", text) for text in (*task.phrasings, *filter(None, [task.trace]))]
        points = {task.answer.column or "" for task in self.tasks if task.answer.kind == "point"}
        for where, text in texts:
            if told := sorted(points & set(slots(text))):
                raise ValueError(f"roi: {where}: {text!r} holds {told[0]}, a point in the whole picture: leave it out")


def load_task_file(path: Path) -> TaskFile:
    """Read and check one task file. Raises LinesideError naming the file, the task, the key and the nearest key."""
    data = read_yaml(path)
    for number, entry in enumerate(data["tasks"] if isinstance(data.get("tasks"), list) else []):
        if isinstance(entry, dict):  # checked one by one first, so that an error names the task
            build(Task, entry, f"{path}, task {entry.get('name', number + 1)}")
    return build(TaskFile, data, str(path))


NO_TRACE = "thinking is true, but there is no `trace` template to learn from, and records have no traces"


def check_thinking(tasks: Iterable[Task]) -> None:
    """Raises LinesideError for a task of records with `thinking: true` and without a trace to learn."""
    if lacking := [f"{task.family}/{task.name}" for task in tasks if task.thinking and task.trace is None]:
        raise LinesideError(f"task {', '.join(lacking)}: {NO_TRACE}: add `trace`, or leave `thinking` out")


def said_by(files: Iterable[Path], *, references: bool = True) -> str:
    """What task files say, as one text: the same for files that differ in comments, white space or order of keys.
    `references`: whether the tasks' key of that name counts."""
    unused = None if references else {"tasks": {"__all__": {"references"}}}
    return json.dumps(merge(files).model_dump(mode="json", exclude_unset=True, exclude=unused), sort_keys=True)


def merge(files: Iterable[Path]) -> TaskFile:
    """Several task files as one. Raises LinesideError when a task occurs twice, or two files describe a table."""
    loaded = [(path, load_task_file(path)) for path in files]
    if not loaded:
        raise LinesideError("no task file given: give a YAML file of tasks that says what to ask")
    tables = [path for path, file in loaded if file.table]
    if len(tables) > 1:
        raise LinesideError(f"{tables[1]}: a second table; {tables[0]} describes one already: label them one by one")
    data = {
        "tasks": tuple(task for _, file in loaded for task in file.tasks),
        "captions": tuple(caption for _, file in loaded for caption in file.captions),
        "table": next((file.table for _, file in loaded if file.table), None),
    }
    return build(TaskFile, data, ", ".join(str(path) for path, _ in loaded))
