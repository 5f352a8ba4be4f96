"""The task file: what a cell is asked and how the answer is checked, written by its engineer in YAML (DESIGN 3).

One file holds `tasks` and, for frames whose teacher is a table of records, `captions` (sentences filled from the
record) and `table` (how the folder and its CSV are read). Adding a task needs no code.

What a key does, and an example of it, stands under the key, once: `lineside task keys` prints it from here.
"""

from __future__ import annotations

import codecs
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
from lineside.data.strict import Strict, Tuple, build, read_yaml
from lineside.data.tabular import Form
from lineside.data.template import slots
from lineside.data.times import check_form
from lineside.data.values import key_text
from lineside.errors import LinesideError
from lineside.types import Costs, Split, Target
from lineside.verify.verifiers import with_truth


def _template(text: str) -> str:
    slots(text)
    return text


def _word(value: Any) -> Any:
    """A whole number as the word it is; what YAML has changed already must be written in quotes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, bool | float):
        raise ValueError(f"YAML reads this as {key_text(value) or 'null'}, which is no text; write the word in quotes")
    return value


def _keys(mapping: Any) -> Any:
    """A mapping by the text of its keys, as values are looked up: 1, 1.0 and "1" are one key."""
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
        raise ValueError(f"no encoding of text is called {name!r}; common ones are utf-8, utf-16, cp1252") from None
    return name


Word = Annotated[str, BeforeValidator(_word)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Template = Annotated[str, Field(min_length=1), AfterValidator(_template)]

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
    """Where the truth of a question stands in the record, and how an answer is held against it.

    A null truth is unknown, and the question is then not asked. Without a column no record knows: a teacher behind an
    API is asked several times, and only what it agrees on with itself is used.
    """

    kind: Literal["exact", "choice", "set", "number", "point"]
    """How an answer is checked. exact: a text, spelling and case aside. choice: one of the options; true and false are
    yes and no. set: a list, in any order. number: at its resolution. point: [x, y] that must fall in a mask.
    Example: {kind: exact, column: product}"""
    column: str | None = None
    """The column that holds the truth. Left out: only a teacher behind an API can answer.
    Example: {kind: exact, column: order_line.text}"""
    accepted_column: str | None = None
    """A list column with every right spelling; `column` is the one that is written.
    Example: {kind: exact, column: top, accepted_column: free_names}"""
    counted: bool = False
    """A list in which things are counted: two cartons are not one. The column repeats a member, or holds
    {carton: 2, red can: 1}; the answer is "2 cartons, red can". Left out: a list of names, each once.
    Example: {kind: set, column: missing, options_column: kit_items, counted: true}"""
    options: Tuple[Word] = ()
    """What can be answered (choice, set). A truth that is not among them is not asked, and counted.
    Example: {kind: choice, column: state, options: [ok, bent, torn]}"""
    options_column: str | None = None
    """A list column that holds the options, where they differ from frame to frame.
    Example: {kind: choice, column: action, options_column: actions}"""
    resolution: PositiveFloat = 1.0
    """Step to which a number is asked and judged: exact is equal to the truth at this step. Truths close to where the
    rounding turns are not asked.
    Example: {kind: number, column: fill, resolution: 10, unit: percent}"""
    tolerance: PositiveFloat = 1.0
    """Distance from the truth at which a number earns no reward in stage 3 any more: reward = 1 - distance / tolerance.
    It is reward alone. It makes no answer exact and changes no accuracy; `resolution` does.
    Example: {kind: number, column: parts, tolerance: 2}"""
    unit: str = ""
    """Unit of a number, written after it. Answers in a unit that converts are understood.
    Example: {kind: number, column: weight, unit: g}"""
    period: NonNegativeFloat = 0.0
    """After how much a number is the same again: 360 for an angle, 180 for a part with two equal ends; 0: never.
    Example: {kind: number, column: angle, unit: degrees, period: 360}"""
    mask_column: str | None = None
    """Column with the mask (height, width, runs) that an exact point must fall in.
    Example: {kind: point, column: point, mask_column: mask}"""
    teacher_column: str | None = None
    """The column that holds what a teacher said, where the table has both. Stage 2 then learns that, also where the
    truth is null; stage 3 and the suites keep to `column`, and `label` holds the one against the other. Not read with
    a teacher behind an API.
    Example: {kind: exact, column: product, teacher_column: said_by_model}"""
    margin_column: str | None = None
    """A true/false column; where it is false the truth is too close to call, and the question is not asked.
    Example: {kind: choice, column: full, options: [yes, no], margin_column: full_is_clear}"""

    @model_validator(mode="after")
    def _check(self) -> Answer:
        common = {"kind", "column", "margin_column"} | ({"teacher_column"} if self.kind != "point" else set())
        stray = self.model_fields_set - common - _KEYS[self.kind]
        if stray:
            raise ValueError(f"an answer of kind {self.kind} has no {', '.join(sorted(stray))}")
        if self.options and self.options_column:
            raise ValueError("options or options_column, not both")
        if self.kind == "choice" and not (self.options or self.options_column):
            raise ValueError("a choice needs its options, or an options_column that holds them")
        others = self.options_column or self.accepted_column or self.teacher_column
        if self.column is None and (self.kind == "point" or others):
            raise ValueError("without a column there is no record to look into: no point, no other columns")
        if self.teacher_column is not None and self.teacher_column == self.column:
            raise ValueError("teacher_column is the column of the truth: leave it out, and the record is the teacher")
        if self.kind == "point" and not self.mask_column:
            raise ValueError("a point needs a mask_column: the mask that an exact answer must fall in")
        return self


class Stakes(Section):
    """What mistakes cost, all in one unit of your choice: money, minutes or plain weights."""

    wrong: NonNegativeFloat = 1.0
    """Cost of a wrong answer that is neither a false pass nor a false stop.
    Example: {wrong: 2}"""
    false_pass: NonNegativeFloat | None = None
    """Cost of a normal answer where all is not well: an incomplete kit is shipped. Left out: as `wrong`.
    Example: {false_pass: 20, false_stop: 1}"""
    false_stop: NonNegativeFloat | None = None
    """Cost of another answer than the normal one where all is well: a good kit is stopped. Left out: as `wrong`.
    Example: {false_pass: 20, false_stop: 1}"""
    refusal: NonNegativeFloat | None = None
    """Cost of no decision: a person answers instead. Left out: a quarter of `wrong`.
    Example: {false_pass: 20, false_stop: 1, refusal: 0.5}"""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, data: object) -> object:
        if isinstance(data, dict) and "false_alarm" in data:
            raise ValueError("false_alarm is called false_stop now; false_pass is the cost of the opposite mistake")
        return data

    @property
    def costs(self) -> Costs:
        """Every cost, with what is left out filled in."""
        return Costs.of(self.wrong, false_pass=self.false_pass, false_stop=self.false_stop, refusal=self.refusal)


class Task(Section):
    """One kind of question."""

    family: Name
    """The cell or kind of picture that is asked; frames of another family are not.
    Example: family: shop"""
    name: Name
    """Name of the task: letters, digits, "_" and "-". family and name together stand once.
    Example: name: packing"""
    version: PositiveInt = 1
    """Raise it when the question changes its meaning, so that results are not compared across.
    Example: version: 2"""
    each: str | None = None
    """A list column. The question is asked once for each of its elements, whose keys are columns then.
    Example: each: is_it"""
    when: str | None = None
    """A true/false column: the question is asked only where it is true.
    Example: when: has_label"""
    phrasings: Annotated[Tuple[Template], Field(min_length=1)]
    """Ways to ask. {column} is filled from the record, {a column} with its article. One is chosen for each frame.
    Example: phrasings: ["Is this {item}?", "Does the picture show {item}?"]"""
    answer: Answer
    """Where the truth stands, and how an answer is held against it: see its own keys.
    Example: answer: {kind: choice, column: same, options: [yes, no]}"""
    trace: Template | None = None
    """The reasoning to learn, filled like a phrasing. It names what is seen, not the question and not the answer alone.
    Example: trace: "it is sold {sold}; it belongs to the group {group}\""""
    thinking: bool | None = None
    """Whether the model thinks before it answers this task. Left out: it does if the task has traces to learn from.
    false leaves out the traces of the simulator or of an API teacher; it cannot stand beside `trace`.
    Example: thinking: false"""
    normal: Word | None = None
    """The answer that says that all is well and the cell goes on: it passes, any other answer stops. `none` for a list
    that is empty. False passes and false stops are then reported apart. Left out: no answer is the normal one.
    Example: normal: "yes\""""
    stakes: Stakes = Stakes()
    """What a mistake costs: see its own keys. Expected costs and the advice of the report come from it.
    Example: stakes: {false_pass: 20, false_stop: 1}"""
    budget_ms: PositiveFloat = 1500.0
    """Milliseconds in which an answer is of use; the share of exact answers within them is reported.
    Example: budget_ms: 800"""
    per_frame: PositiveInt = 1
    """Questions of this task a frame, at most; with `each` there may be more elements.
    Example: per_frame: 2"""
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share that one answer may have in a split: of a commoner one, questions are left out. Suites keep weights
    that restore the natural shares. Left out: as they come.
    Example: max_share: 0.5"""

    @model_validator(mode="after")
    def _check(self) -> Task:
        answer = self.answer
        if answer.teacher_column is not None and self.trace is not None and answer.column in slots(self.trace):
            raise ValueError(
                f"trace holds {{{answer.column}}}, the truth, but the answer to learn is the teacher's: name "
                f"{{{answer.teacher_column}}} or what was seen"
            )
        if self.thinking is False and self.trace is not None:
            raise ValueError("thinking is false, but there is a trace to learn: leave out one of the two")
        if self.normal is not None:
            self._check_normal(self.normal)
        return self

    def _check_normal(self, normal: str) -> None:
        """A normal answer must be one that the task can be given."""
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
            raise ValueError(f"normal: {normal!r} is no answer of kind {answer.kind}{offered}{none}")


class Captions(Section):
    """Sentences about a family's pictures, filled from the record (stage 1), where records are the teacher."""

    family: Name
    """The family that the sentences are about.
    Example: family: shop"""
    templates: Annotated[Tuple[Template], Field(min_length=1)]
    """The sentences. A frame gets at most as many captions as there are, and never fewer captions than questions: write
    at least as many as a frame has questions.
    Example: templates: ["This is {product}.", "{product}, sold {sold}."]"""
    wrong: Tuple[str] = ()
    """Columns of which one is exchanged to make a caption false, to measure whether the model sees it.
    Example: wrong: [product, sold]"""


class Column(Section):
    """A column of the record made from one of the table: renamed, its values mapped, or made readable."""

    column: str
    """The table's column.
    Example: {column: product}"""
    values: Annotated[dict[str, str | bool | int | float | None], BeforeValidator(_keys)] | None = None
    """What each value of the table becomes. A key may be a range of numbers: 0-10, <0, >=50; both ends belong to it,
    and an end that two ranges share to the higher one.
    Example: {column: fill, values: {"0-10": empty, "10-90": partly filled, ">=90": full}}"""
    otherwise: str | bool | int | float | None = None
    """What a value becomes that is not listed. Left out: unknown. "{value}": the value itself.
    Example: {column: state, values: {OK: ok, NOK: faulty}, otherwise: "{value}"}"""
    words: bool = False
    """Write names as words: Golden-Delicious and golden_delicious with a space.
    Example: {column: product, words: true}"""
    sentences: PositiveInt | None = None
    """Keep so many sentences of a long text.
    Example: {column: description, sentences: 1}"""
    type: Literal["text", "number", "bool", "list"] = "text"
    """What the cells of a CSV file hold, where all is text; a list has "|" between its members.
    Example: {column: parts, type: number}"""

    @model_validator(mode="after")
    def _check(self) -> Column:
        if self.values is None and self.otherwise is not None:
            raise ValueError("otherwise belongs to values: say which values it is not")
        if isinstance(self.otherwise, str) and self.otherwise != PASS_ON and set("{}") & set(self.otherwise):
            raise ValueError(f'otherwise: {self.otherwise!r}: "{PASS_ON}" alone passes the value on; no other braces')
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
        """The key of `values` that a value of the table falls under: itself, else a range; None if there is none."""
        if self.values is not None and value in self.values:
            return value
        return where_in(value, self._ranges) if self._ranges else None


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class Join(Section):
    """A second table whose row with the same value of `on` is added to each row."""

    file: str
    """The second table, beside the first.
    Example: {file: products.csv, on: product}"""
    on: str
    """The column that both tables have; in the second one each value stands once.
    Example: {file: products.csv, on: product}"""


class Distractors(Section):
    """A list column with elements {item, same}: the row's own value (same is true), and values of other rows, as often
    as they occur. A task with `each` asks "Is this {item}?" of it. Where the own value is null, so is every `same`."""

    name: Name
    """Name of the new column.
    Example: {name: is_it, column: product}"""
    column: str
    """The column of the record whose values are exchanged.
    Example: {name: is_it, column: product}"""
    count: PositiveInt = 1
    """Other values beside the row's own.
    Example: {name: is_it, column: product, count: 2}"""
    teacher_column: str | None = None
    """A column with what a teacher said of `column`: elements then have `said` beside `same`, whether it was the item.
    Example: {name: is_it, column: product, teacher_column: said_by_model}"""
    near: str | None = None
    """Half of the other values come from rows that agree in this column: another product of the same group.
    Example: {name: is_it, column: product, near: group}"""


class Splits(Section):
    """The data's own split (its column, and what each of its values is called here), or one by hash."""

    column: str | None = None
    """The column that says which split a row is of.
    Example: {column: part, values: {train: train, test: heldout}}"""
    values: Annotated[dict[str, Split], BeforeValidator(_keys)] = Field(default_factory=dict)
    """What each value of that column is called here: train, dev (tuning), heldout (the suite), shifted (new SKUs).
    Example: {column: part, values: {train: train, val: dev, test: heldout}}"""
    by: Literal["scene", "cell", "camera", "day", "sku"] | None = None
    """Split by hash instead: all frames of a scene, cell, camera, day (of `time`) or SKU land on one side, and frames
    that are added move none.
    Example: {by: camera}"""
    shares: dict[Split, NonNegativeFloat] | None = None
    """Shares of a split by hash; they sum to 1.
    Example: {by: scene, shares: {train: 0.7, dev: 0.1, heldout: 0.2}}"""
    salt: str = ""
    """Another text draws other sides.
    Example: {by: scene, salt: second draw}"""

    @model_validator(mode="after")
    def _check(self) -> Splits:
        if (self.column is None) == (self.by is None):
            raise ValueError("a column of the data's own with its values, or by: what to hash; one of the two")
        if (self.column is None) != (not self.values):
            raise ValueError("column and values belong together")
        if self.column is not None and (self.shares or self.salt):
            raise ValueError("shares and salt belong to a split by hash")
        if self.shares is not None and "shifted" in self.shares:
            raise ValueError("shifted is held out whole, never drawn: name its frames in a column of the data's own")
        if self.shares is not None and abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares must sum to 1, not {sum(self.shares.values()):g}")
        return self


class Table(Section):
    """How inputs become frames. Names are columns of the rows."""

    file: str | None = None
    """What the rows are, inside the folder: a table beside the pictures (.csv, .jsonl), Parquet with the pictures
    inside, WebDataset tars, videos; "*.parquet" for several. Left out: what is found there.
    Example: file: frames.csv"""
    family: Name
    """The family of these frames.
    Example: family: shop"""
    image: str = "image"
    """The column with the picture's file, or with the picture.
    Example: image: photo"""
    pictures: str | None = None
    """The folder that the names in `image` start from, relative to that of the frames. Left out: the frames' own.
    Example: pictures: images"""
    encoding: Annotated[str, AfterValidator(_encoding)] | None = None
    """How the letters of tables are encoded. Left out: UTF-8, or what a byte-order mark says.
    Example: encoding: cp1252"""
    delimiter: Annotated[str, Field(pattern='^[^"\\r\\n]$')] | None = None
    """What separates the fields of a CSV file. Left out: comma, semicolon, tab or bar, as header and rows agree.
    Example: delimiter: ";\""""
    decimal: Literal[".", ","] | None = None
    """The decimal sign in columns of type number; the other one may then group thousands. Left out: as all numbers of
    the table agree.
    Example: decimal: ",\""""
    time_format: Annotated[str, AfterValidator(check_form)] | None = None
    """How the column `time` is written, in Python's strptime codes. Left out: ISO 8601, year first, seconds since 1970,
    and day.month.year are read; day and month with slashes where the table shows which comes first.
    Example: time_format: "%m/%d/%Y %H:%M\""""
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many bits of 16 a grey picture uses. Left out: the fewest of 8, 10, 12, 14, 16 that hold its brightest pixel.
    Example: bits: 12"""
    every: PositiveFloat = 1.0
    """Seconds between two frames of a video.
    Example: every: 0.5"""
    split: Splits | None = None
    """Which frames are for training and which for judging. Left out: by hash of the scene, 80% train, 10% dev, 10%
    heldout.
    Example: split: {column: part, values: {train: train, test: heldout}}"""
    join: Tuple[Join] = ()
    """Further tables.
    Example: join: [{file: products.csv, on: product}]"""
    columns: dict[Name, Annotated[Column, BeforeValidator(_column)]] = Field(default_factory=dict)
    """The columns of the record, by the names that tasks and captions use. Left out: the table's own, as text.
    Example: columns: {product: {column: product, words: true}, group: group}"""
    distractors: Tuple[Distractors] = ()
    """List columns for yes-or-no questions: the row's own value and wrong ones.
    Example: distractors: [{name: is_it, column: product, near: group}]"""
    scene: str | None = None
    """Column that says which pictures show the same scene: they land in one split. Left out: every picture is a scene
    of its own, and every video one.
    Example: scene: order_number"""
    cell: str | None = None
    """Column with the cell or station.
    Example: cell: station"""
    camera: str | None = None
    """Column with the camera; near-duplicates are looked for camera by camera.
    Example: camera: cam"""
    time: str | None = None
    """Column with the time of the picture, as 2026-01-31 or 2026-01-31T08:00:00.
    Example: time: taken_at"""
    week: str | None = None
    """Column with the week, a number.
    Example: week: week"""
    skus: str | None = None
    """Column with the SKUs in the picture, "|" between several.
    Example: skus: product"""

    @property
    def form(self) -> Form:
        """How tables of text are written."""
        return Form(self.encoding, self.delimiter)


class TaskFile(Section):
    """A whole task file."""

    tasks: Annotated[Tuple[Task], Field(min_length=1)]
    """What is asked: one entry for each kind of question.
    Example: tasks: [{family: shop, name: group, phrasings: ["Which group?"], answer: {kind: exact, column: group}}]"""
    captions: Tuple[Captions] = ()
    """Sentences about the pictures (stage 1), where records are the teacher.
    Example: captions: [{family: shop, templates: ["This is {product}."]}]"""
    table: Table | None = None
    """How a folder of one's own is read.
    Example: table: {file: frames.csv, family: shop}"""

    @model_validator(mode="after")
    def _check(self) -> TaskFile:
        names = [(task.family, task.name) for task in self.tasks]
        twice = sorted({f"{family}/{name}" for family, name in names if names.count((family, name)) > 1})
        if twice:
            raise ValueError(f"the task {', '.join(twice)} stands here twice")
        return self


def load_task_file(path: Path) -> TaskFile:
    """Read and check one task file. Raises LinesideError naming the file, the task, the key and the nearest key."""
    data = read_yaml(path)
    for number, entry in enumerate(data["tasks"] if isinstance(data.get("tasks"), list) else []):
        if isinstance(entry, dict):  # checked one by one first, so that a mistake is told with the task's own name
            build(Task, entry, f"{path}, task {entry.get('name', number + 1)}")
    return build(TaskFile, data, str(path))


def load_tasks(path: Path) -> tuple[Task, ...]:
    """The tasks of one file. Errors as `load_task_file`."""
    return load_task_file(path).tasks


NO_TRACE = "thinking is true, but there is no `trace` template to learn it from, and records write none"


def check_thinking(tasks: Iterable[Task]) -> None:
    """Raises LinesideError for a task of records that says it thinks and has no trace to learn that from."""
    if lacking := [f"{task.family}/{task.name}" for task in tasks if task.thinking and task.trace is None]:
        raise LinesideError(f"task {', '.join(lacking)}: {NO_TRACE}: add `trace`, or leave `thinking` out")


def merge(files: Iterable[Path]) -> TaskFile:
    """Several task files as one. Raises LinesideError when a task stands in two, or two describe a table."""
    loaded = [(path, load_task_file(path)) for path in files]
    if not loaded:
        raise LinesideError("no task file given: say what to ask with a YAML file of tasks")
    tables = [path for path, file in loaded if file.table]
    if len(tables) > 1:
        raise LinesideError(f"{tables[1]}: a second table; {tables[0]} describes one already, label them one by one")
    data = {
        "tasks": tuple(task for _, file in loaded for task in file.tasks),
        "captions": tuple(caption for _, file in loaded for caption in file.captions),
        "table": next((file.table for _, file in loaded if file.table), None),
    }
    return build(TaskFile, data, ", ".join(str(path) for path, _ in loaded))
