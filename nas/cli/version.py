"""``nas version``: what is installed."""

from nas.cli import options
from nas.cli.outcome import print_json, verb


@verb
def version(
    as_json: options.AsJson = False,
) -> None:
    """Print the version of nas and of the libraries its numbers come from."""
    from nas import __version__
    from nas.rundir import versions

    if as_json:
        print_json({"version": __version__, "versions": versions()})
        return
    print(f"nas {__version__}")
    for name, number in versions().items():
        print(f"  {name} {number}")
