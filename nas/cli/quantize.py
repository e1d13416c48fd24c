"""``nas quantize``: a model in int8."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import command_line, print_json, print_scores, resumable, say, verb


@verb
def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Task model or encoder: folder or hub id; a sparse one stays so.")],
    out: Annotated[Path, typer.Option(help="Folder for the int8 model; must be absent or empty.")],
    mode: Annotated[
        str,
        typer.Option(
            help="dynamic rounds activations as they come, static by ranges found on real text, qat trains the model "
            "to be rounded."
        ),
    ] = "dynamic",
    task: Annotated[
        str | None, typer.Option(help="For static and qat: the task, a file, a folder or a hub id.")
    ] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Or text: a file, folder or hub id; may be repeated.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="For qat: what it learns from; the model as it was.")] = None,
    steps: Annotated[int | None, typer.Option(help="For qat: optimiser steps; 500 unless --minutes is given.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="For qat: as many steps as fit into so many minutes, measured at the start.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="For qat: texts a step.")] = 32,
    lr: Annotated[float, typer.Option(help="For qat: peak learning rate.")] = 5e-5,
    seq_len: options.Cut = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an unfinished run of qat.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Round a model to int8; of a sparse one the folder also holds a small file with bitmask and bytes.

    Example: nas quantize my-model --mode static --task movies.csv --out my-int8-model
    """
    from nas import api
    from nas.progress import choose_progress

    with resumable("repeat the command; qat goes on with --resume"):
        found = api.quantize(
            model,
            out,
            mode=mode,
            task=task,
            corpora=corpus or [],
            teacher=teacher,
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            lr=lr,
            seq_len=seq_len,
            seed=seed,
            text=text,
            text_pair=text_pair,
            label=label,
            resume=resume,
            command=command_line(context),
            progress=choose_progress(quiet=quiet),
        )
    if as_json:
        print_json(found.to_dict())
        return
    print_scores(found.scores)
    if found.explained is not None:
        print(f"It explains {found.explained:.1%} of its teacher's states on held-out text.")
    for sentence in found.sentences:
        print(sentence)
    print(f"The int8 model is in {out}.")
    say(f"Next: nas measure {out}" + (f"; nas eval {out} --task {task}" if task else ""))
