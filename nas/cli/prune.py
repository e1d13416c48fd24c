"""``nas prune``: most weights of a model's matrices become zero, by and by."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import command_line, print_json, print_scores, resumable, say, verb


@verb
def prune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="With --task a task model, with --corpus an encoder: folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the sparse model; must be absent or empty.")],
    task: Annotated[str | None, typer.Option(help="Task to learn meanwhile: a file, a folder or a hub id.")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Or text to learn from: a file, folder or hub id; may be repeated.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="What it learns from; the dense model itself by default.")] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the weights to remove; 0.9 by default, of N:M what that comes to.")
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="unstructured, N:M such as 2:4, or blocks of outputs x inputs such as 4x1.")
    ] = "unstructured",
    scope: Annotated[
        str, typer.Option(help="uniform gives every matrix this sparsity, global all together.")
    ] = "uniform",
    criterion: Annotated[
        str, typer.Option(help="magnitude, or obert: what costs least to second order; takes up to 1 GiB more memory.")
    ] = "magnitude",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; 1000 unless --minutes is given.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="As many steps as fit into so many minutes, by a measurement at the start.")
    ] = None,
    batch_size: options.TextsAStep = 32,
    lr: options.LearningRate = 2e-4,
    seq_len: Annotated[int | None, typer.Option(help="Cut longer texts to so many tokens; 64 of a corpus.")] = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune a model while the dense one teaches it; later steps keep the pattern.

    An encoder is pruned once, on plain text, and then fine-tuned on any number of tasks with nas finetune.

    Example: nas prune my-encoder --corpus text.txt --sparsity 0.9 --out my-sparse-encoder
    """
    from nas import api
    from nas.progress import choose_progress

    with resumable():
        found = api.prune(
            model,
            out,
            task=task,
            corpora=corpus or [],
            teacher=teacher,
            sparsity=sparsity,
            pattern=pattern,
            scope=scope,
            criterion=criterion,
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
    print(f"The model is in {out}, {found.sparsity:.1%} of its matrices' weights are zero.")
    say(
        f"Next: nas quantize {out}"
        if task
        else f"Next: nas finetune {out} --task FILE --out DIR, which keeps the zeros"
    )
