"""``nas eval``: a task model's figures, in PyTorch and in ONNX Runtime."""

from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import print_json, verb


@verb
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Task model: a folder that nas finetune wrote, a Hugging Face one, a hub id.")
    ],
    task: options.Task,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    seq_len: options.Cut = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a task model on a split, with PyTorch and with its ONNX files.

    Example: nas eval movies-tiny --task movies.csv --split test
    """
    from nas import api
    from nas.progress import choose_progress

    found = api.evaluate(
        model,
        task=task,
        split=split,
        text=text,
        text_pair=text_pair,
        label=label,
        seq_len=seq_len,
        progress=choose_progress(quiet=quiet),
    )
    if as_json:
        print_json(found.to_dict())
        return
    from rich.table import Table

    from nas.cli.tables import console

    table = Table(title=f"{found.split}: {found.num_texts:,} texts", title_justify="left", box=None, pad_edge=False)
    names = list(found.scores["torch"])
    for name in ("", *names, "equal answers", "largest difference"):
        table.add_column(name, justify="right" if name else "left")
    for runtime, scores in found.scores.items():
        agreement = ("", "")
        if runtime in found.agreement:
            agreement = (f"{found.agreement[runtime]:.2%}", f"{found.largest_difference[runtime]:.1e}")
        table.add_row(runtime, *(f"{scores[name]:.4f}" for name in names), *agreement)
    console().print(table)
