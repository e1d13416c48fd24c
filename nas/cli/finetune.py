"""``nas finetune``: an encoder becomes a task model."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import command_line, print_json, print_scores, resumable, say, verb


@verb
def finetune(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Encoder: a folder of a search or export, a Hugging Face one, a hub id.")
    ],
    task: options.Task,
    out: Annotated[Path, typer.Option(help="Folder for the task model; must be absent or empty.")],
    teacher: Annotated[
        str | None, typer.Option(help="Fine-tuned model to learn from: a folder or hub id (nas finetune makes one).")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Times every training text is seen.")] = 4,
    lr: Annotated[float, typer.Option(help="Peak learning rate; the head learns five times as fast.")] = 1e-4,
    batch_size: options.TextsAStep = 32,
    metric: Annotated[
        str | None,
        typer.Option(help="What chooses the best weights, e.g. accuracy, f1, mcc, pearson, spearman, entity_f1."),
    ] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without a better figure.")] = None,
    kind: options.Kind = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    seq_len: options.Cut = None,
    pooling: Annotated[
        str | None, typer.Option(help="What stands for a text: first (token) or mean; by default as the model's head.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's answers.")] = 2.0,
    label_weight: Annotated[float, typer.Option(help="Weight of the labels beside the teacher's answers.")] = 0.5,
    hidden_weight: Annotated[float, typer.Option(help="Weight of the teacher's hidden states.")] = 1.0,
    distil_epochs: Annotated[float, typer.Option(help="Epochs of the teacher's hidden states alone, before.")] = 0.0,
    augment: Annotated[
        int, typer.Option(help="Copies of each text with exchanged words, which the teacher labels.")
    ] = 0,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune a model on a task, taught by labels and by a fine-tuned teacher.

    Example: nas finetune runs/r/model --task movies.csv --teacher movies-teacher --out movies-tiny
    """
    from nas import api
    from nas.progress import choose_progress

    with resumable():
        found = api.finetune(
            model,
            out,
            task=task,
            teacher=teacher,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            metric=metric,
            patience=patience,
            kind=kind,
            text=text,
            text_pair=text_pair,
            label=label,
            seq_len=seq_len,
            pooling=pooling,
            temperature=temperature,
            label_weight=label_weight,
            hidden_weight=hidden_weight,
            distil_epochs=distil_epochs,
            augment=augment,
            resume=resume,
            command=command_line(context),
            progress=choose_progress(quiet=quiet),
        )
    scores = {"validation": found.validation.scores} | ({} if found.test is None else {"test": found.test.scores})
    if as_json:
        print_json({"model": str(out), "task": task, "best_step": found.history.best_step, "scores": scores})
        return
    print_scores(scores)
    print(f"The task model is in {out}.")
    say(f"Next: nas eval {out} --task {task}; nas measure {out}")
