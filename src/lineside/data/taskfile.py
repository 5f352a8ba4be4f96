"""The task file: what a cell is asked and how the answer is checked, written by its engineer in YAML (DESIGN 3).

One file holds `tasks` and, for frames whose teacher is a table of records, `captions` (sentences filled from the
record) and `table` (how the folder and its CSV are read). Adding a task needs no code.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from lineside.data.strict import Strict, Tuple, build, read_yaml
from lineside.data.template import slots
from lineside.errors import LinesideError
from lineside.types import Split


def _template(text: str) -> str:
    slots(text)
    return text


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Template = Annotated[str, Field(min_length=1), AfterValidator(_template)]

# Which keys of `answer` each kind reads, besides kind, column and margin_column.
_KEYS = {
    "exact": {"accepted_column"},
    "choice": {"accepted_column", "options", "options_column"},
    "set": {"options", "options_column"},
    "number": {"resolution", "tolerance", "unit", "period"},
    "point": {"mask_column"},
}


class Answer(Strict):
    """Where the truth of a question stands in the record, and how an answer is held against it.

    `column` holds the truth: a string (exact, choice), true/false (choice of yes and no), a list of strings (set), a
    number, or [x, y] in [0, 1] (point). A null truth is unknown, and the question is then not asked. Without a column
    no record knows: a teacher behind an API is asked several times, and only what it agrees on with itself is used.
    """

    kind: Literal["exact", "choice", "set", "number", "point"]
    column: str | None = None
    accepted_column: str | None = None  # list of all right spellings; `column` is the one written
    options: Tuple[str] = ()
    options_column: str | None = None
    resolution: PositiveFloat = 1.0
    tolerance: PositiveFloat = 1.0
    unit: str = ""
    period: NonNegativeFloat = 0.0
    mask_column: str | None = None
    margin_column: str | None = None  # true/false; false: too close to call, not asked

    @model_validator(mode="after")
    def _check(self) -> Answer:
        stray = self.model_fields_set - {"kind", "column", "margin_column"} - _KEYS[self.kind]
        if stray:
            raise ValueError(f"an answer of kind {self.kind} has no {', '.join(sorted(stray))}")
        if self.options and self.options_column:
            raise ValueError("options or options_column, not both")
        if self.kind == "choice" and not (self.options or self.options_column):
            raise ValueError("a choice needs its options, or an options_column that holds them")
        if self.column is None and (self.kind == "point" or self.options_column or self.accepted_column):
            raise ValueError("without a column there is no record to look into: no point, no other columns")
        if self.kind == "point" and not self.mask_column:
            raise ValueError("a point needs a mask_column: the mask that an exact answer must fall in")
        return self


class Stakes(Strict):
    """Cost of a wrong answer and of a false alarm, relative to each other."""

    wrong: NonNegativeFloat = 1.0
    false_alarm: NonNegativeFloat = 1.0


class Task(Strict):
    """One kind of question. `each` asks it once for every element of a list column, whose keys become slots too."""

    family: Name
    name: Name
    version: PositiveInt = 1
    each: str | None = None
    when: str | None = None  # a true/false column (element first): only asked where it is true
    phrasings: Annotated[Tuple[Template], Field(min_length=1)]
    answer: Answer
    trace: Template | None = None
    stakes: Stakes = Stakes()
    budget_ms: PositiveFloat = 1500.0
    per_frame: PositiveInt = 1
    max_share: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # no answer may exceed this share in a split; None: natural
    )


class Captions(Strict):
    """Sentences about a family's pictures, filled from the record, for the table teacher.

    `wrong` names the columns of which one is exchanged to make a caption false (caption matching).
    """

    family: Name
    templates: Annotated[Tuple[Template], Field(min_length=1)]
    wrong: Tuple[str] = ()


class Column(Strict):
    """A column of the record made from one of the table: renamed, its values mapped, or made readable."""

    column: str
    values: dict[str, str | bool | int | float | None] | None = None  # what each value of the table becomes
    otherwise: str | bool | int | float | None = None  # ... and what any value not listed becomes
    words: bool = False  # "Golden-Delicious" or "golden_delicious" as words
    sentences: PositiveInt | None = None  # keep this many sentences of a long text
    type: Literal["text", "number", "bool", "list"] = "text"  # a list is separated by "|" in CSV

    @model_validator(mode="after")
    def _check(self) -> Column:
        if self.values is None and self.otherwise is not None:
            raise ValueError("otherwise belongs to values: say which values it is not")
        return self


class Join(Strict):
    """A second table whose row with the same value of `on` is added to each row."""

    file: str
    on: str


class Distractors(Strict):
    """A list column with elements {item, same}: the row's own value, and `count` values of other rows, as often as they
    occur. With `near`, half of these come from rows that agree in that column (another product of the same group).
    """

    name: Name
    column: str
    count: PositiveInt = 1
    near: str | None = None


class Splits(Strict):
    """The data's own split (its column and what each of its values is called here), or one by hash.

    By hash, all frames of a scene, cell, camera, day (of `time`) or SKU land on one side, and growth moves none.
    """

    column: str | None = None
    values: dict[str, Literal["train", "dev", "heldout", "shifted"]] = Field(default_factory=dict)
    by: Literal["scene", "cell", "camera", "day", "sku"] | None = None
    shares: dict[Split, NonNegativeFloat] | None = None
    salt: str = ""  # another one draws other sides

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


class Table(Strict):
    """How inputs become frames. Every name is a column of the rows; `file` says what the rows are.

    `file`: relative to the folder, a pattern such as "*.parquet" for several. By its suffix a table (.csv, .jsonl)
    beside the pictures, Parquet with the pictures inside, WebDataset tars, or videos; none: what is found there.
    """

    file: str | None = None
    family: Name
    image: str = "image"
    every: PositiveFloat = 1.0  # seconds between two frames of a video
    split: Splits | None = None  # None: by hash of the scene
    join: Tuple[Join] = ()
    columns: dict[Name, str | Column] = Field(default_factory=dict)
    distractors: Tuple[Distractors] = ()
    scene: str | None = None  # None: every picture is a scene of its own, every video one
    cell: str | None = None
    camera: str | None = None
    time: str | None = None
    week: str | None = None
    skus: str | None = None


class TaskFile(Strict):
    """A whole task file."""

    tasks: Annotated[Tuple[Task], Field(min_length=1)]
    captions: Tuple[Captions] = ()
    table: Table | None = None

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
