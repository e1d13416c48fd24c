"""``nas export``: a model of a search as a folder that other programs load."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.outcome import print_json, say, verb


@verb
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a search.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; must be absent or empty.")],
    pick: Annotated[
        str, typer.Option(help="best (within the budget), fastest or smallest of the front, or a model's key.")
    ] = "best",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a model of a search: Hugging Face folder, ONNX in float and int8, tokenizer and model card."""
    from nas import api
    from nas.progress import choose_progress

    exported = api.export(run, out, pick=pick, progress=choose_progress(quiet=quiet))
    if as_json:
        print_json(exported.to_dict())
        return
    print(f"{exported.key} is in {exported.model_dir}.")
    say(f"Next: nas measure {exported.model_dir}")
