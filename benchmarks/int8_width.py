"""How much faster is int8 than float32 on one thread, by the width of the encoder?

    python benchmarks/int8_width.py [--widths 128 256 384] [--layers 4] [--rounds 5] [--seconds 1.5] [--json FILE]

Encoders with random weights and four times as wide a feed-forward, one text of 128 tokens. Of each width three files
are timed through our runner in one session, one after the other, each beside the anchor: float32, int8 with activations
rounded as they come (dynamic), int8 with fixed ranges (static, found on random text). A round is a session of its own
in random order; a ratio is taken within a round. Printed are the median over rounds and their range.

Integer kernels gain with width, and more where the processor multiplies bytes directly (VNNI, AMX); flags are printed.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import onnx

from nas.devices.resolve import live
from nas.devices.target import Settings
from nas.export.int8 import quantize, quantize_static
from nas.export.onnx_graph import build_graph
from search_spaces.architecture import Architecture, TextSpec

TEXT = TextSpec(vocab_size=1024, max_positions=128)
FORMS = ("fp32", "dynamic", "static")


def write_forms(folder: Path, width: int, num_layers: int) -> dict[str, Path]:
    """The three files of a width."""
    num_heads = next(number for number in range(max(1, width // 32), 0, -1) if width % number == 0)
    architecture = Architecture.bert(num_layers, width, 4 * width, num_heads)
    graph = build_graph(architecture, TEXT, None)
    files = {f"{width} {form}": folder / f"{width}.{form}.onnx" for form in FORMS}
    onnx.save_model(graph, files[f"{width} fp32"])
    quantize(graph, files[f"{width} dynamic"])
    ids = np.random.default_rng(0).integers(0, TEXT.vocab_size, (16, 4, 128))
    batches = [
        {"input_ids": one, "attention_mask": np.ones_like(one), "token_type_ids": np.zeros_like(one)} for one in ids
    ]
    quantize_static(graph, files[f"{width} static"], batches)
    return files


def flags() -> list[str]:
    """The processor's instructions that matter here."""
    found = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return [name for name in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8") if name in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 192, 256, 312, 384, 512, 768])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        files: dict[str, Path] = {}
        for width in arguments.widths:
            files |= write_forms(Path(name), width, arguments.layers)
        for seed in range(arguments.rounds):
            order = list(files.items())
            random.Random(seed).shuffle(order)
            target = live("cpu", Settings())
            for form, latency in target.measure(dict(order), seconds_each=arguments.seconds, attempts=1).items():
                times.setdefault(form, []).append(latency.p50_s)
    print(f"{target.description}; {', '.join(flags()) or 'flags not known'}; {arguments.rounds} rounds")
    print("width   fp32 ms   dynamic int8: times faster   static int8: times faster")
    rows = []
    for width in arguments.widths:
        floats = np.array(times[f"{width} fp32"])
        ratios = {form: floats / np.array(times[f"{width} {form}"]) for form in FORMS[1:]}
        said = [f"{np.median(r):6.2f} [{r.min():.2f}, {r.max():.2f}]" for r in ratios.values()]
        print(f"{width:5}  {np.median(floats) * 1e3:8.2f}   {said[0]:>26}   {said[1]:>25}")
        rows.append({"width": width, "fp32_s": floats.tolist(), **{form: r.tolist() for form, r in ratios.items()}})
    if arguments.json:
        facts = {"device": target.description, "flags": flags(), "layers": arguments.layers, "widths": rows}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
