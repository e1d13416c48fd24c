"""Does progressive shrinking find better chains than training every block to the end, at equal steps?

    python benchmarks/shrinking.py [--steps 300] [--seeds 0 1 2] [--candidates 40] [--keep 10] [--json shrinking.json]
    python benchmarks/shrinking.py --fresh --keep 2 --start 0.1 --end 0.4
    python benchmarks/shrinking.py --teacher DIR --space nas-bert-small --steps 2000 --batch-size 32

Block-wise distillation (NAS-BERT, Xu et al., 2021, arXiv 2105.14444) from one start with one seed, twice: with
shrinking, and without, where the same candidates are drawn and scored once at the end. Then, as in a search, all
chains that the kept blocks assemble to are ranked by their summed losses within a limit of encoder parameters, and the
best ten are judged on held-out texts: by their agreement with the teacher (supernet/evaluate.py), and by the share of
its output that they leave unexplained (the loss). Printed is the best of the ten by each for every limit, how often the
operations of the best chain were trained, and the paired differences between the two trainings with a t interval over
seeds. With --json every finished seed is kept, and a second call does the others.

Operations start from the teacher's weights, where it has them, and maps between blocks from least squares: chains of
the teacher's form are nearly the teacher before the first step. With --fresh operations start from random weights, as
the paper's do.

Without --teacher the teacher is a subnet of the shipped supernet, 6 layers, 128 wide, so that a step takes a fraction
of a second, and the space is chains of 3 blocks of --places (4) at --widths (64, 96 and 128). The text is --corpus, by
default corpus/ovos-wiki-en.txt.xz in the folder that the environment variable NAS_DATA names (default ../shared/data).
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy import stats

from analysis.assembly import Candidates, rank
from search_spaces.architecture import Architecture, Block
from search_spaces.chain_space import ChainSpace
from search_spaces.cost import encoder_parameters
from search_spaces.presets import load_space
from supernet.block_table import BlockTable
from supernet.chain_losses import boundary_loss, boundary_states
from supernet.chain_supernet import ChainSupernet
from supernet.chain_train import build_chains, start_training
from supernet.chain_trainer import ChainTrainer, ChainTrainingConfig
from supernet.checkpoint import load_supernet
from supernet.data import Batch
from supernet.evaluate import pooled_states, similarity_agreement
from supernet.extract import extract
from supernet.material import Material, load_start, read_material
from supernet.model import initialise
from supernet.shrinking import Shrinking
from supernet.teacher import Teacher, load_tokenizer
from supernet.train import make_reference
from supernet.trainer import TrainingConfig

CORPUS = Path(os.environ.get("NAS_DATA", "../shared/data")) / "corpus" / "ovos-wiki-en.txt.xz"
SPACE = ChainSpace("3 blocks of 4, 64 to 128 wide", 3, 4, (64, 96, 128), head_size=32)
LIMITS = (0.2, 0.35, 0.6)  # of the largest chain's encoder parameters
JUDGED = 10
WAYS = ("shrinking", "all")  # all: every block is trained to the end


def small_teacher() -> Teacher:
    loaded = load_supernet()
    encoder = extract(loaded.supernet, Architecture.bert(6, 128, 512, 4))
    return Teacher("shipped L6-D128-F512", encoder, None, load_tokenizer(str(loaded.tokenizer_dir), encoder.text))


def assembled(table: BlockTable, space: ChainSpace, limit: float) -> list[Architecture]:
    """The chains with the least summed losses whose encoder parameters are within a limit."""
    embedding = {one.size: one.loss for one in table.embeddings}
    blocks = []
    for index, scored in enumerate(table.blocks):
        first = [0.0 if index else embedding[one.block.hidden_size] for one in scored]
        blocks.append(
            Candidates(
                np.array([one.block.hidden_size for one in scored]),
                np.array([one.loss + loss for one, loss in zip(scored, first, strict=True)]),
                np.array([[float(one.parameters)] for one in scored]),
            )
        )
    widths = space.hidden_size
    maps = {(one, other): [float(one * other + other)] for one in widths for other in widths if one != other}
    found = rank(blocks, maps, [limit], k=4 * JUDGED).best
    chains = (tuple(table.blocks[place][one].block for place, one in enumerate(each.places)) for each in found)
    return [Architecture(chain[0].hidden_size, chain) for chain in chains if any(b.sublayers for b in chain)][:JUDGED]


def best_chains(trainer: ChainTrainer, material: Material) -> list[tuple[float, float, Architecture]]:
    """For each limit the best agreement of the chains that rank first, the least loss of them, and whose is the best.

    The loss is the share of the teacher's output that the assembled chain leaves unexplained.
    """
    supernet, space = trainer.supernet.eval(), trainer.supernet.config.space
    reference = make_reference(trainer.teacher, material.held_out, supernet.config.teacher_size)
    batches = [Batch(reference.input_ids, reference.attention_mask)]
    table, largest = trainer.block_table(), encoder_parameters(space.largest())
    best = []
    for share in LIMITS:
        chains = assembled(table, space, share * largest)
        states = [pooled_states(supernet, chain, batches) for chain in chains]
        agreements = [similarity_agreement(one, reference.teacher_pooled) for one in states]
        agreement, chain = max(zip(agreements, chains, strict=True), key=lambda pair: pair[0])
        best.append((agreement, min(output_loss(trainer, chain, batches[0]) for chain in chains), chain))
    return best


@torch.no_grad()
def output_loss(trainer: ChainTrainer, chain: Architecture, batch: Batch) -> float:
    supernet, num_blocks = trainer.supernet, trainer.supernet.config.space.num_blocks
    target = boundary_states(trainer.teacher, batch, num_blocks)[-1]
    last = supernet(chain, batch.input_ids, batch.attention_mask).hidden[-1]
    return float(boundary_loss(supernet, num_blocks, last, target, batch.attention_mask))


class Updates:
    """Counts how often each operation of a supernet is trained."""

    def __init__(self, supernet: ChainSupernet) -> None:
        self.counts: Counter[tuple[int, int, int, str]] = Counter()
        self._supernet, run_block = supernet, supernet.run_block

        def counted(index: int, block: Block, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            if supernet.training:
                self.counts.update(self._operations(index, block))
            return run_block(index, block, hidden, mask)

        supernet.run_block = counted

    def _operations(self, index: int, block: Block) -> list[tuple[int, int, int, str]]:
        return [(index, place, block.hidden_size, name) for place, name in self._supernet.places(block)]

    def of(self, chain: Architecture) -> float:
        """The mean over a chain's operations."""
        operations = [one for index, block in enumerate(chain.blocks) for one in self._operations(index, block)]
        return float(np.mean([self.counts[one] for one in operations]))


def train(supernet: ChainSupernet, start: dict[str, torch.Tensor], material: Material, config: ChainTrainingConfig):
    supernet.load_state_dict(start)
    trainer, updates = ChainTrainer(supernet, material, config), Updates(supernet)
    scoring_s, shrink = 0.0, trainer.shrink

    def timed() -> None:
        nonlocal scoring_s
        began_s = time.process_time()
        shrink()
        scoring_s += time.process_time() - began_s

    trainer.shrink = timed
    began_s = time.process_time()
    for _ in range(config.run.steps or 0):
        trainer.train_step()
    took_s = time.process_time() - began_s
    del supernet.run_block  # no longer counted
    best = best_chains(trainer, material)
    return {
        "best": [agreement for agreement, _, _ in best],
        "loss": [loss for _, loss, _ in best],
        "chains": [chain.key() for _, _, chain in best],
        "updates": [updates.of(chain) for _, _, chain in best],
        "train_s": took_s - scoring_s,
        "shrink_s": scoring_s,
    }


def told(found: dict[str, list[float]], place: int) -> str:
    best, loss, updates = (found[name][place] for name in ("best", "loss", "updates"))
    return f"{best:.4f} (loss {loss:.4f}, trained {updates:.0f} times)"


def paired(gains: list[float]) -> str:
    """The mean of paired differences with a 95 % t interval."""
    mean = float(np.mean(gains))
    if len(gains) < 2:
        return f"{mean:+.4f}"
    half = float(stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains))
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}], {sum(gain > 0 for gain in gains)} of {len(gains)} up"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--keep", type=int, default=10)
    parser.add_argument("--start", type=float, default=Shrinking.start)
    parser.add_argument("--end", type=float, default=Shrinking.end)
    parser.add_argument("--bins", type=int, default=Shrinking.num_bins)
    parser.add_argument("--places", type=int, default=SPACE.places_per_block)
    parser.add_argument("--widths", type=int, nargs="+", default=list(SPACE.hidden_size))
    parser.add_argument("--fresh", action="store_true", help="operations start from random weights, as published")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--joint-share", type=float, default=ChainTrainingConfig.joint_share)
    parser.add_argument("--teacher")
    parser.add_argument("--space", default="nas-bert-small")
    parser.add_argument("--corpus", nargs="+", default=[str(CORPUS)])
    parser.add_argument("--max-tokens", type=int, default=600_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_start(arguments.teacher, None)[0] if arguments.teacher else small_teacher()
    name = f"3 blocks of {arguments.places}, {arguments.widths[0]} to {arguments.widths[-1]} wide"
    own = ChainSpace(name, SPACE.num_blocks, arguments.places, tuple(arguments.widths), head_size=SPACE.head_size)
    space = load_space(arguments.space) if arguments.teacher else own
    assert teacher is not None
    assert isinstance(space, ChainSpace)
    material = read_material(
        arguments.corpus, teacher, teacher.tokenizer, seq_len=arguments.seq_len, max_tokens=arguments.max_tokens
    )
    shrinking = Shrinking(arguments.bins, arguments.candidates, arguments.keep, arguments.start, arguments.end)
    rows = []
    if arguments.json is not None and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())["rows"]
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread; {teacher.name}")
    print(f"{space.name}: {space.size:.3g} chains")
    for seed in sorted(set(arguments.seeds) - {row["seed"] for row in rows}):
        run = TrainingConfig(
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            seq_len=arguments.seq_len,
            learning_rate=arguments.lr,
            precision="fp32",
            seed=seed,
        )
        supernet = build_chains(space, teacher, seed=seed, seq_len=arguments.seq_len)
        trainer = start_training(supernet, material, ChainTrainingConfig(run))
        if arguments.fresh:
            supernet.blocks.apply(initialise)
        start = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        if not rows:
            begun = [f"{agreement:.3f} ({loss:.3f})" for agreement, loss, _ in best_chains(trainer, material)]
            print("agreement of the best chains at the start (and least loss):", *begun)
        row = {"seed": seed}
        for way in WAYS:
            shrinks = way == "shrinking"
            config = ChainTrainingConfig(run, joint_share=arguments.joint_share, shrinking=shrinking, shrinks=shrinks)
            row[way] = train(supernet, start, material, config)
        rows.append(row)
        for place, share in enumerate(LIMITS):
            ours, theirs = (told(row[way], place) for way in WAYS)
            print(f"seed {seed}, {share:.0%} of the parameters: shrinking {ours}, without {theirs}", flush=True)
        if arguments.json:
            options = {name: str(value) for name, value in vars(arguments).items()}
            arguments.json.write_text(json.dumps({"options": options, "rows": rows}, indent=1))
    for name, sign in (("best", 1), ("loss", -1)):
        gains = [
            [sign * (row["shrinking"][name][place] - row["all"][name][place]) for row in rows]
            for place in range(len(LIMITS))
        ]
        for share, some in zip(LIMITS, gains, strict=True):
            print(f"{name}, {share:.0%}: gain {paired(some)}")
        print(f"{name}, mean of the three limits: gain {paired(np.mean(gains, axis=0).tolist())}")
    logs = [np.mean(np.log(np.divide(row["shrinking"]["loss"], row["all"]["loss"]))) for row in rows]
    half = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs) if len(logs) > 1 else np.nan
    ratio, low, high = np.exp(np.mean(logs) + np.array([0, -half, half]))
    print(f"loss with shrinking over loss without, geometric mean: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    times = [f"{np.mean([row[way]['updates'] for row in rows]):.0f}" for way in WAYS]
    print(f"an operation of the best chains was trained {times[0]} times, without shrinking {times[1]}")
    taken = [[row["shrinking"][name] for row in rows] for name in ("train_s", "shrink_s")]
    print(f"processor seconds: training {np.mean(taken[0]):.0f}, scoring of the shrinkings {np.mean(taken[1]):.0f}")


if __name__ == "__main__":
    main()
