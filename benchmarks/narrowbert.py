"""How much faster is NarrowBERT than the full model, when it classifies a text and when it is pre-trained?

    python benchmarks/narrowbert.py inference [--hidden-size 312] [--seq-len 512] [--batch-size 1] [--rounds 20]
    python benchmarks/narrowbert.py pretraining [--hidden-size 312] [--batch-size 4] [--rounds 5] [--device cuda]

Twelve layers with random weights: the full model, SparseQueries {k, sf}:{12-k, sf} with k = 1..4 full layers, and
ContextFirst sfsf{10, s}:{10, f}, which has no narrow attention. All take turns, in random order within a round.

Inference: kept is position 0. SparseQueries has its keys and values formed (plain) and absorbed, and each model runs in
torch and in ONNX Runtime on one thread; before that, absorbed and plain and both runtimes are checked to agree. Printed
are medians, how many times faster than the full model in the same runtime, with a bootstrap 90 % interval over rounds,
and what the multiply-accumulates say.

Pre-training: 15 % of the tokens are masked; kept are they and position 0. A step is the forward pass, a masked-language
head over 30,522 words on what is kept, and the backward pass, without the optimiser's. Printed are tokens a second, and
by how many times more they are than the full model's in the same round: the median over rounds, and their range.

Counted is the time on the processor, which others on a shared machine disturb less; with ``--device cuda`` wall time.

Published for BERT-base at T 512 on a GPU (Li et al., 2023, arXiv 2301.04761), k = 1..4: inference 4.64, 3.49, 2.79,
2.33 times, pre-training 2.47, 2.34, 2.15, 1.63 times. With one text at a time a narrow layer reads all its weights for
one position, which takes longer than computing with them; several texts at a time share that.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import torch
from torch.nn import functional as F  # noqa: N812

from nas.export.export import encoder_weights
from nas.export.onnx_graph import build_graph
from search_spaces.architecture import Architecture, Attention, Block, FeedForward, TextSpec
from search_spaces.cost import num_macs
from search_spaces.space import SearchSpace
from supernet.encoder import Encoder
from supernet.model import MlmHead, SupernetConfig, initialise

NUM_LAYERS = 12
TOLERANCE = 1e-5
MASK_RATE = 0.15
Run = Callable[[], object]


def sparse_queries(full_layers: int, hidden_size: int, num_heads: int) -> Architecture:
    """The first layers are full, the others narrow; all of them full for the model to compare with."""
    return Architecture.bert(
        NUM_LAYERS, hidden_size, 4 * hidden_size, num_heads, num_narrow_layers=NUM_LAYERS - full_layers
    )


def context_first(hidden_size: int, num_heads: int) -> Architecture:
    """Two layers, ten attentions over the whole text, then ten feed-forwards at position 0."""
    attention, feed_forward = Attention(num_heads, hidden_size // num_heads), FeedForward(4 * hidden_size)
    full = (attention, feed_forward) * 2 + (attention,) * (NUM_LAYERS - 2)
    return Architecture(hidden_size, (Block(hidden_size, full + (feed_forward,) * (NUM_LAYERS - 2)),), len(full))


def forms(hidden_size: int, num_heads: int, full_layers: list[int]) -> dict[str, tuple[Architecture, bool | None]]:
    """Every model by name, with the form of its narrow attention."""
    models: dict[str, tuple[Architecture, bool | None]] = {
        "full": (sparse_queries(NUM_LAYERS, hidden_size, num_heads), None)
    }
    for count in full_layers:
        architecture = sparse_queries(count, hidden_size, num_heads)
        models |= {f"SparseQueries k={count}, plain": (architecture, False)}
        models |= {f"SparseQueries k={count}, absorbed": (architecture, True)}
    return models | {"ContextFirst": (context_first(hidden_size, num_heads), None)}


def torch_run(encoder: Encoder, is_absorbed: bool | None, ids: np.ndarray) -> Run:
    """A forward pass in torch, of a twin that shares the encoder's weights and has a form of its own."""
    with torch.device("meta"):
        twin = Encoder(encoder.architecture, encoder.text).eval()
    twin.load_state_dict(encoder.state_dict(), assign=True)
    twin.absorb(is_absorbed)
    tokens, mask = torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.long)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return twin(tokens, mask).numpy()

    return run


def onnx_run(encoder: Encoder, is_absorbed: bool | None, ids: np.ndarray) -> Run:
    """A forward pass in ONNX Runtime."""
    graph = build_graph(encoder.architecture, encoder.text, encoder_weights(encoder), is_absorbed=is_absorbed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return lambda: session.run(None, feed)[0]


def prepare(models: dict[str, tuple[Architecture, bool | None]], ids: np.ndarray, runtimes: list[str]) -> dict:
    """Builds every model in every runtime and checks that they agree: runs by (name, runtime)."""
    text = TextSpec(max_positions=ids.shape[1])
    encoders: dict[Architecture, Encoder] = {}
    runs: dict[tuple[str, str], Run] = {}
    makers = {"torch": torch_run, "onnxruntime": onnx_run}
    for name, (architecture, is_absorbed) in models.items():
        if architecture not in encoders:
            torch.manual_seed(0)
            encoders[architecture] = Encoder(architecture, text).eval()
        for runtime in runtimes:
            runs[name, runtime] = makers[runtime](encoders[architecture], is_absorbed, ids)
    first = {}
    for (name, runtime), run in runs.items():
        output = run()[:, :1]
        expected = first.setdefault(models[name][0], output)
        assert np.abs(output - expected).max() < TOLERANCE, f"{name} in {runtime} differs from its other forms"
    return runs


def training_step(architecture: Architecture, ids: torch.Tensor, positions: torch.Tensor) -> Run:
    """A step of masked-language pre-training without the optimiser's part, on ids (B, T) and what is kept (B, M)."""
    size, attention = architecture.hidden_size, architecture.sublayers[0]
    space = SearchSpace("one", (1,), (size,), (4 * size,), (attention.num_heads,), (attention.head_size,))
    text = TextSpec(max_positions=ids.shape[1])
    torch.manual_seed(0)
    encoder = Encoder(architecture, text).apply(initialise).to(ids.device)  # else denormal numbers slow the head down
    head = MlmHead(SupernetConfig(space, text, size, has_mlm_head=True), size).apply(initialise).to(ids.device)
    labels = ids.gather(1, positions).flatten()
    parameters = [*encoder.parameters(), *head.parameters()]

    def run() -> None:
        kept = encoder(ids, None, None, positions).flatten(0, 1)  # (B * M, D)
        F.cross_entropy(head(kept, encoder.embeddings.word.weight), labels).backward()
        for parameter in parameters:
            parameter.grad = None
        if ids.is_cuda:
            torch.cuda.synchronize()

    return run


def race(runs: dict, num_rounds: int, clock: Callable[[], float] = time.thread_time) -> dict:
    """Seconds of every run of every round."""
    random, keys = np.random.default_rng(0), list(runs)
    times: dict = {key: [] for key in keys}
    for _ in range(num_rounds):
        for index in random.permutation(len(keys)):
            started = clock()
            runs[keys[index]]()
            times[keys[index]].append(clock() - started)
    return times


def pretraining(options: argparse.Namespace) -> dict:
    """Prints the table of pre-training."""
    shapes = {"full": sparse_queries(NUM_LAYERS, options.hidden_size, options.num_heads)}
    for count in options.full_layers:
        shapes[f"SparseQueries k={count}"] = sparse_queries(count, options.hidden_size, options.num_heads)
    shapes["ContextFirst"] = context_first(options.hidden_size, options.num_heads)
    generator = torch.Generator().manual_seed(0)
    size = (options.batch_size, options.seq_len)
    ids = torch.randint(5, 30_000, size, generator=generator).to(options.device)
    ranks = torch.rand(size, generator=generator)
    ranks[:, 0] = 2.0  # position 0 is not masked, and kept all the same
    num_kept = 1 + round(MASK_RATE * options.seq_len)
    positions = ranks.topk(num_kept).indices.sort().values.to(options.device)
    runs = {name: training_step(shape, ids, positions) for name, shape in shapes.items()}
    clock = time.perf_counter if ids.is_cuda else time.process_time
    race(runs, 2 if ids.is_cuda else 1, clock)
    times = race(runs, options.rounds, clock)
    full = np.array(times["full"])
    costs = {n: num_macs(shape, options.seq_len, num_narrow_positions=num_kept) for n, shape in shapes.items()}
    print(f"\npre-training on {options.device}, batch {options.batch_size}, {num_kept} of {options.seq_len} kept")
    for name, seconds in times.items():
        own = np.array(seconds)
        ratios = full / own
        print(
            f"  {name:28}{ids.numel() / np.median(own):10,.0f} tokens/s  {np.median(ratios):5.2f} x "
            f"[{ratios.min():.2f}, {ratios.max():.2f}]   by multiply-accumulates {costs['full'] / costs[name]:.2f} x"
        )
    return {"macs": costs, "seconds": times, "tokens": ids.numel()}


def main() -> None:
    """Prints one table a runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["inference", "pretraining"])
    parser.add_argument("--hidden-size", type=int, default=312)
    parser.add_argument("--num-heads", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--full-layers", type=int, nargs="+", default=[1, 2, 3, 4], metavar="K")
    parser.add_argument("--runtimes", nargs="+", choices=["torch", "onnxruntime"], default=["torch", "onnxruntime"])
    parser.add_argument("--batch-size", type=int, help="Texts at a time: 1 of inference by default, 4 of pre-training.")
    parser.add_argument("--device", default="cpu", help="Of pre-training: cpu or cuda.")
    parser.add_argument("--rounds", type=int, help="20 of inference by default, 5 of pre-training.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.rounds = options.rounds or {"inference": 20, "pretraining": 5}[options.part]
    options.batch_size = options.batch_size or {"inference": 1, "pretraining": 4}[options.part]
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {platform.machine()}"
    print(
        f"{NUM_LAYERS} layers, hidden size {options.hidden_size}, {options.num_heads} heads, {options.batch_size} x "
        f"{options.seq_len} tokens, one thread, {options.rounds} rounds; {versions}"
    )
    facts = {"inference": inference, "pretraining": pretraining}[options.part](options)
    if options.json:
        asked = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"versions": versions, "options": asked, **facts}, indent=1))


def inference(options: argparse.Namespace) -> dict:
    """Prints the tables of inference, one a runtime."""
    models = forms(options.hidden_size, options.num_heads, options.full_layers)
    ids = np.random.default_rng(0).integers(5, 30_000, (options.batch_size, options.seq_len))
    runs = prepare(models, ids, options.runtimes)
    race(runs, 1)
    times = race(runs, options.rounds)
    costs = {
        name: num_macs(architecture, options.seq_len, is_absorbed=form) for name, (architecture, form) in models.items()
    }
    picks = np.random.default_rng(1).integers(0, options.rounds, (1000, options.rounds))
    for runtime in options.runtimes:
        print(f"\n{runtime}")
        full = np.array(times["full", runtime])
        for name in models:
            own = np.array(times[name, runtime])
            ratios = np.median(full[picks], axis=1) / np.median(own[picks], axis=1)
            low, high = np.quantile(ratios, (0.05, 0.95))
            print(
                f"  {name:28}{np.median(own) * 1e3:9.2f} ms   {np.median(full) / np.median(own):5.2f} x "
                f"[{low:.2f}, {high:.2f}]   by multiply-accumulates {costs['full'] / costs[name]:.2f} x"
            )
    return {
        "macs": costs,
        "seconds": {f"{name} | {runtime}": values for (name, runtime), values in times.items()},
    }


if __name__ == "__main__":
    main()
