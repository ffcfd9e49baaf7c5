"""The recipe's commands: `novamesh recipe train` and `novamesh recipe evaluate`.

Rules: importing this starts no torch, because the root command imports every part to list it; each
command imports what it needs when it runs. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import json as json_text
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter, validators
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from novamesh_proto.errors import Code, NovaMeshError

if TYPE_CHECKING:
    from novamesh_engine.recipe.evaluation import Score
    from novamesh_engine.recipe.training import Progress as Step

__all__ = ["app"]

app = App(name="recipe", help="Make the built-in model from nothing, and measure it.")

Count = Annotated[int, Parameter(validator=validators.Number(gte=1, lte=10_000))]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=False,
    )  # fmt: skip


@app.command
def train(
    *,
    preset: str = "pico",
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    out: Path = Path("nova-recipe"),
    resume: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a model from a seed and quantize it; the same bytes each time on one machine.

    Parameters
    ----------
    preset
        What to make: pico (the built-in model, about half an hour on two cores) or smoke (a
        minute or two, knows nothing).
    seed
        Decides the text, the order and the first weights.
    out
        Folder for the checkpoint, the plain model and the NF4 profile.
    resume
        Go on from the folder's checkpoint.
    """
    # bitsandbytes warns that it has no fast CPU kernels; converting needs none.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Heavy (torch, tokenizers), and missing where only the client is installed.
    from novamesh_engine.recipe import training
    from novamesh_engine.recipe.export import export
    from novamesh_engine.recipe.preset import find_preset

    chosen = find_preset(preset)
    _check_free(out, f"nova-{chosen.name}", resume)
    training.prepare_torch()
    with _progress() as bar:
        task = bar.add_task("pretrain", total=chosen.steps, note="")

        def report(step: Step) -> None:
            note = f"loss {step.loss:.3f}"
            bar.update(task, completed=step.step, description=step.phase, note=note)

        trained = training.train(chosen, seed, out, report, resume=resume)
    profile = export(trained.network, trained.tokenizer, out)
    sys.stdout.write(
        f"{profile.path}\n{profile.digest_text}\n"
        f"{profile.parameters} parameters, {profile.size} bytes, {trained.seconds / 60:.1f} min\n"
    )


def _check_free(out: Path, name: str, resume: bool) -> None:
    """Before half an hour of work, not after it."""
    if (out / name).exists() and any((out / name).iterdir()):
        raise NovaMeshError(Code.CONFLICT, f"{out / name} is not empty", "choose another --out")
    if not resume and (out / "checkpoint.safetensors").exists():
        raise NovaMeshError(
            Code.CONFLICT,
            f"{out} holds the checkpoint of an unfinished training",
            "add --resume to go on, or choose another --out",
        )


@app.command
def evaluate(
    model: str = "nova-pico",
    *,
    items: Count = 500,
    mistakes: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=100))] = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure held-out accuracy through the engine, with 95 % intervals.

    Parameters
    ----------
    model
        A built-in model's name, or a model folder.
    items
        Questions in each row.
    mistakes
        Show up to so many wrong answers of each row.
    json
        Print one JSON object.
    """
    # Heavy (torch), and missing where only the client is installed.
    import time

    from novamesh_engine.recipe.corpus.mixture import ROWS
    from novamesh_engine.recipe.evaluation import evaluate as measure
    from novamesh_engine.recipe.evaluation import open_engine

    engine = open_engine(model)
    started = time.monotonic()
    scores: list[Score] = []
    with _progress() as bar:
        task = bar.add_task("evaluate", total=len(ROWS), note=ROWS[0].name)
        for score in measure(engine, items):
            scores.append(score)
            under_way = [row.name for row in ROWS[len(scores) : len(scores) + 1]]
            bar.update(task, advance=1, note="".join(under_way))
    report = {
        "model": model,
        "digest": None if engine.profile is None else engine.profile.digest_text,
        "command": f"novamesh recipe evaluate {model} --items {items} --json",
        "seconds": round(time.monotonic() - started, 1),
        "rows": [score.as_dict() for score in scores],
    }
    sys.stdout.write(json_text.dumps(report, indent=2) + "\n" if json else _table(scores, mistakes))


def _table(scores: Iterable[Score], mistakes: int) -> str:
    """The table as the model card has it; what each row aimed at is in the JSON."""
    lines = [f"{'':<50}  {'right':>8}  {'accuracy':>8}  95 % interval"]
    for score in scores:
        low, high, accuracy = (share * 100 for share in (*score.bounds, score.accuracy))
        lines.append(
            f"{score.row.title:<50}  {score.right:>4}/{score.asked:<4}{accuracy:>7.1f} %"
            f"  {low:>5.1f} - {high:>5.1f} %"
        )
        for mistake in score.mistakes[:mistakes]:
            lines += [f"    {mistake.prompt!r}", f"      {mistake.wanted!r} != {mistake.given!r}"]
    return "\n".join(lines) + "\n"
