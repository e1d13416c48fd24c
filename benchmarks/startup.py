"""How long ``import nas`` and ``nas --help`` take, beside an empty Python, in turn.

python benchmarks/startup.py [--rounds 15]
"""

import argparse
import subprocess
import sys
import time

import numpy as np

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import nas": [sys.executable, "-c", "import nas"],
    "nas --help": [sys.executable, "-m", "nas.cli.main", "--help"],
}
TARGETS = {"import nas": 0.2, "nas --help": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(parser.parse_args().rounds + 1):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if number:
                times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        target = f" (target at most {TARGETS[name]} s)" if name in TARGETS else ""
        print(f"{name}: median {np.median(values):.3f} s [{min(values):.3f}, {max(values):.3f}]{target}")


if __name__ == "__main__":
    main()
