"""How fast is the ONNX graph that an encoder is exported as, against what the usual tools make of the same model?

    python benchmarks/onnx_graph.py [--rounds 100] [--shapes 4,256,1024,8 ...]

For each shape (layers, hidden, feed-forward, heads) one Hugging Face BertModel with random weights becomes an ONNX
file in several ways; all of them run in turns, in random order, in one process: ONNX Runtime on the CPU, one thread,
batch 1, 128 tokens. Printed are medians and the ratio of each way's median to ours, with a bootstrap 90 % interval over
rounds: above 1 the way is slower than ours. Counted is the thread's time on the processor, which others on a shared
machine disturb less; absolute times still wander, the ratios hold.
"""

import argparse
import logging
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers import optimizer
from torch import Tensor
from transformers import BertConfig, BertModel

from nas.export.huggingface import hub_weights
from nas.export.int8 import quantize
from nas.export.onnx_graph import INPUT_NAMES, OUTPUT_NAME, build_graph, weight_shapes
from search_spaces.architecture import Architecture, TextSpec

TOKENS = 128
SHAPES = ("1,128,128,4", "2,128,512,4", "4,256,1024,8", "6,384,1536,12")


class LastHiddenState(torch.nn.Module):
    """A BertModel with tensors in and one tensor out, as the torch exporters want it."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Returns the last hidden state (B, T, D)."""
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


def our_weights(model: BertModel, architecture: Architecture, text: TextSpec) -> dict[str, np.ndarray]:
    """The BertModel's weights under our names."""
    marks = {name: np.array(name) for name in weight_shapes(architecture, text)}
    theirs = {str(mark): name for name, mark in hub_weights(architecture, marks).items() if mark.ndim == 0}
    state = model.state_dict()
    return {name: state[theirs[name]].numpy() for name in marks}


def make_files(folder: Path, architecture: Architecture) -> dict[str, Path]:
    """Writes one ONNX file for each way and returns them by name; ours is the first."""
    attention, feed_forward = architecture.uniform.attention, architecture.uniform.feed_forward
    text = TextSpec()
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        intermediate_size=feed_forward.intermediate_size,
        num_attention_heads=attention.num_heads,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    files = {"ours": folder / "ours.onnx", "torch.onnx.export (dynamo)": folder / "dynamo.onnx"}
    started = time.perf_counter()
    graph = build_graph(architecture, text, our_weights(model, architecture, text))
    onnx.save_model(graph, files["ours"])
    build_s = time.perf_counter() - started

    ids = torch.randint(5, 30_000, (2, 16))
    example = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    names = {"input_names": list(INPUT_NAMES), "output_names": [OUTPUT_NAME]}
    axes = {0: "batch", 1: "sequence"}
    started = time.perf_counter()
    torch.onnx.export(
        LastHiddenState(model),
        example,
        files["torch.onnx.export (dynamo)"],
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=dict.fromkeys(INPUT_NAMES, axes),
        **names,
    )
    print(f"  built and saved in {build_s:.3f} s; dynamo {time.perf_counter() - started:.1f} s")
    model.set_attn_implementation("eager")
    traced = folder / "torchscript.onnx"
    torch.onnx.export(
        LastHiddenState(model),
        example,
        traced,
        dynamo=False,
        opset_version=17,
        dynamic_axes=dict.fromkeys((*INPUT_NAMES, OUTPUT_NAME), axes),
        **names,
    )
    for source, label in ((files["torch.onnx.export (dynamo)"], "dynamo"), (traced, "torchscript")):
        name = f"onnxruntime.transformers.optimizer ({label})"
        files[name] = folder / f"optimized-{label}.onnx"
        heads = {"num_heads": attention.num_heads, "hidden_size": architecture.hidden_size}
        fused = optimizer.optimize_model(str(source), model_type="bert", opt_level=0, **heads)
        fused.save_model_to_file(str(files[name]))
    files["ours, int8"] = folder / "ours-int8.onnx"
    quantize(graph, files["ours, int8"])
    files["dynamo, int8 (same settings)"] = folder / "dynamo-int8.onnx"
    quantize_dynamic(
        files["torch.onnx.export (dynamo)"], files["dynamo, int8 (same settings)"], per_channel=True, reduce_range=True
    )
    return files


def race(files: dict[str, Path], rounds: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Runs all files in turns; returns their outputs and the processor times in seconds, shape (rounds, files)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in files.values()
    ]
    random = np.random.default_rng(0)
    ids = random.integers(5, 30_000, (1, TOKENS))
    feed = dict(zip(INPUT_NAMES, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    feeds = [
        {
            value.name: feed[value.name].astype(np.int32 if value.type == "tensor(int32)" else np.int64)
            for value in session.get_inputs()
        }
        for session in sessions
    ]
    outputs = [session.run(None, feed)[0] for session, feed in zip(sessions, feeds, strict=True)]
    for session, feed in zip(sessions * 3, feeds * 3, strict=True):
        session.run(None, feed)
    times = np.empty((rounds, len(sessions)))
    for row in times:
        for index in random.permutation(len(sessions)):
            started = time.thread_time()
            sessions[index].run(None, feeds[index])
            row[index] = time.thread_time() - started
    return outputs, times


def main() -> None:
    """Prints one table a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="L,D,F,N")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    versions = {"onnxruntime": onnxruntime, "onnx": onnx, "torch": torch, "transformers": transformers}
    print(", ".join(f"{name} {module.__version__}" for name, module in versions.items()), platform.machine())
    for shape in arguments.shapes:
        layers, hidden, intermediate, heads = map(int, shape.split(","))
        architecture = Architecture.bert(layers, hidden, intermediate, heads)
        print(f"\n{architecture.key()}, one thread, batch 1, {TOKENS} tokens, {arguments.rounds} rounds")
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(Path(folder), architecture)
            outputs, times = race(files, arguments.rounds)
        picks = np.random.default_rng(1).integers(0, len(times), (1000, len(times)))
        medians = np.median(times, axis=0)
        for index, name in enumerate(files):
            ratios = np.median(times[picks, index], axis=1) / np.median(times[picks, 0], axis=1)
            low, high = np.quantile(ratios, (0.05, 0.95))
            difference = np.abs(outputs[index] - outputs[0]).max()
            print(
                f"  {name:52}{medians[index] * 1e3:8.2f} ms   x {medians[index] / medians[0]:.3f} "
                f"[{low:.3f}, {high:.3f}]   differs by {difference:.0e}"
            )


if __name__ == "__main__":
    main()
