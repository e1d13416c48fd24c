"""The model card: what an exported encoder or task model is, how good, how fast, how faithful, and how to load it.

A fact that is not known is left out; none is made up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.latency import Latency
from nas.export.huggingface import MODELING_FILE, ModelClass, auto_class, is_stock
from nas.export.parity import Parity
from nas.export.task_head import TaskHead
from search_spaces.architecture import Architecture, Attention, FeedForward, SepConv, TextSpec
from search_spaces.cost import num_macs, num_parameters
from search_spaces.errors import InvalidInputError
from search_spaces.files import write_atomic

if TYPE_CHECKING:
    from supernet.pooling import Pooling

_SEQ_LEN = 128
_NARROW_OUTPUT = "the state of position 0, or of given `positions`; what needs all positions cannot use it"
_PURPOSES = {
    "model.safetensors": "weights for Transformers and sentence-transformers, fp32",
    "model.onnx": "ONNX, fp32, standard operators",
    "model.int8.onnx": "ONNX, int8 weights, tables and activations",
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a search knows about a model beyond its files; what is not known stays out of the card.

    Attributes:
        quality: The figure the search maximised.
        quality_name: What that figure means, in one phrase a newcomer understands.
        scores: How good a task model is on a split, by metric; ``scores_of`` says which split of what.
        scores_of: E.g. ``the test split of movies.csv, 1,000 texts``.
        latencies: By exported file name (``model.onnx``, ``model.int8.onnx`` ...), one for each device, batch and
            length, as measured, or as predicted where that could not be.
        device: The device in words, e.g. the processor's name.
        supernet: Where the weights come from.
        teacher: What the supernet was distilled from.
        license: Identifier for the card's header, e.g. ``apache-2.0``.
        license_notes: Licences of teacher, data and weights in words.
        command: The command that made this model.
    """

    quality: float | None = None
    quality_name: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    scores_of: str | None = None
    latencies: Mapping[str, Sequence[Latency]] = field(default_factory=dict)
    device: str | None = None
    supernet: str | None = None
    teacher: str | None = None
    license: str | None = None
    license_notes: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        unknown = self.latencies.keys() - _PURPOSES.keys()
        if unknown:
            raise InvalidInputError(f"latencies must be named as {sorted(_PURPOSES)}, got {sorted(unknown)}")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export left on disk.

    Attributes:
        folder: Holds everything.
        architecture: The model's shape.
        text: What it reads.
        model_class: The Hugging Face class; all but ``ChainEncoderModel`` need no code of ours.
        sizes_bytes: Size of each model file, by name.
        parities: Each model file against its source.
        with_positions: Whether the ONNX files have the input ``positions``.
        head: Of a task model; None of an encoder.
        pooling: Which state of an encoder stands for a text.
    """

    folder: Path
    architecture: Architecture
    text: TextSpec
    model_class: ModelClass
    sizes_bytes: Mapping[str, int]
    parities: tuple[Parity, ...]
    with_positions: bool = False
    head: TaskHead | None = None
    pooling: "Pooling" = "mean"

    @property
    def onnx_path(self) -> Path:
        """The fp32 ONNX file."""
        return self.folder / "model.onnx"

    @property
    def int8_path(self) -> Path:
        """The int8 ONNX file."""
        return self.folder / "model.int8.onnx"

    @property
    def card_path(self) -> Path:
        """The model card."""
        return self.folder / "README.md"


def write_card(folder: Path, report: ExportReport, facts: CardFacts) -> None:
    """Writes, or rewrites, the model card of an exported folder, e.g. once its files were measured.

    Raises:
        InvalidInputError: The folder cannot be written.
    """
    write_atomic(folder / "README.md", render_card(report, facts))


def render_card(report: ExportReport, facts: CardFacts) -> str:
    """Returns the card's Markdown."""
    sections = (
        _header(report, facts),
        _shape(report),
        _quality(facts),
        _latency(facts),
        _files(report),
        _usage(report),
        _origin(facts),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(report: ExportReport, facts: CardFacts) -> str:
    pipeline, tags = "feature-extraction", ["sentence-transformers", "feature-extraction"]
    said = "A tiny text encoder, found by latency-aware neural architecture search."
    if report.head is not None:
        pipeline = "token-classification" if report.head.spec.kind == "tagging" else "text-classification"
        tags, said = [pipeline], f"A tiny text encoder with a head for {report.head.spec.kind}."
    lines = ["---", "library_name: transformers", f"pipeline_tag: {pipeline}"]
    lines += [f"license: {facts.license}"] if facts.license else []
    lines += ["tags:", *(f"- {tag}" for tag in (*tags, "onnx", "neural-architecture-search")), "---", ""]
    return "\n".join([*lines, f"# {report.architecture.key()}", "", said])


def _shape(report: ExportReport) -> str:
    architecture, text = report.architecture, report.text
    rows = {"Shape": describe(architecture)}
    if architecture.embedding_size != architecture.blocks[0].hidden_size:
        rows["Embedding"] = f"factorised, {architecture.embedding_size} wide"
    rows |= {
        "Parameters": f"{num_parameters(architecture, text):,}",
        "Multiply-accumulates": f"{num_macs(architecture, _SEQ_LEN):,} for one text of {_SEQ_LEN} tokens",
        "Output": _output(report),
        "Vocabulary": f"{text.vocab_size:,} tokens",
        "Longest text": f"{text.max_positions:,} tokens",
        "Transformers class": f"`{report.model_class}`",
    }
    return "## Model\n\n" + _table(("", ""), rows.items())


def _output(report: ExportReport) -> str:
    if report.head is None:
        return "a state for every token" if report.architecture.narrow_from is None else _NARROW_OUTPUT
    spec = report.head.spec
    if spec.kind == "regression":
        return "a number for each text"
    shown = ", ".join(spec.labels[:12]) + (", ..." if len(spec.labels) > 12 else "")
    each = "word, at its first token" if spec.kind == "tagging" else "pair of texts" if spec.is_pair else "text"
    return f"logits of {len(spec.labels)} labels for each {each}: {shown}"


def describe(architecture: Architecture) -> str:
    """Says a shape in words."""
    narrow_from, total = architecture.narrow_from, len(architecture.sublayers)
    number = 0 if narrow_from is None else total - narrow_from
    narrow = f"; the last {number} of {total} sub-layers {'are' if number > 1 else 'is'} narrow" if number else ""
    layers = architecture.uniform
    if layers is not None:
        if layers.is_context_first:
            narrow += f": the feed-forwards of the last {layers.num_narrow_layers} layers, behind all attentions"
        return (
            f"{layers.num_layers} layers, hidden size {architecture.hidden_size}, "
            f"{layers.attention.num_heads} heads of {layers.attention.head_size}, "
            f"feed-forward size {layers.feed_forward.intermediate_size}{narrow}"
        )
    blocks = (
        f"hidden size {block.hidden_size}: " + ", ".join(_name_sublayer(sublayer) for sublayer in block.sublayers)
        for block in architecture.blocks
    )
    return "; ".join(blocks) + narrow


def _name_sublayer(sublayer: object) -> str:
    match sublayer:
        case Attention(num_heads, head_size):
            return f"attention {num_heads} x {head_size}"
        case FeedForward(intermediate_size):
            return f"feed-forward {intermediate_size}"
        case SepConv(kernel_size):
            return f"separable convolution {kernel_size}"
    return str(sublayer)


def _quality(facts: CardFacts) -> str:
    if facts.scores:
        rows = [(name, f"{value:.4f}") for name, value in facts.scores.items()]
        return f"## Quality\n\nOn {facts.scores_of}.\n\n" + _table(("Metric", "Value"), rows)
    if facts.quality is None:
        return ""
    meaning = f" ({facts.quality_name})" if facts.quality_name else ""
    return f"## Quality\n\n**{facts.quality:.4f}**{meaning}"


def _latency(facts: CardFacts) -> str:
    if not facts.latencies:
        return ""
    titles = (
        "File",
        "Device",
        "Runtime",
        "Threads",
        "Batch",
        "Tokens",
        "p50",
        "p90",
        "90 % interval of p50",
        "Verdict",
    )
    rows = [_latency_row(name, latency) for name in _PURPOSES for latency in facts.latencies.get(name, ())]
    device = f"\n\nDevice: {facts.device}." if facts.device else ""
    return "## Latency\n\nOf one forward pass.\n\n" + _table(titles, rows) + device


def _latency_row(name: str, latency: Latency) -> tuple[str, ...]:
    conditions = latency.conditions
    return (
        f"`{name}`",
        conditions.device,
        f"{conditions.runtime}, {conditions.precision}",
        str(conditions.threads),
        str(conditions.batch_size),
        str(conditions.seq_len),
        _milliseconds(latency.p50_s),
        "" if latency.p90_s is None else _milliseconds(latency.p90_s),
        f"{_milliseconds(latency.low_s)} to {_milliseconds(latency.high_s)}",
        f"{latency.source}, {latency.verdict}",
    )


def _files(report: ExportReport) -> str:
    parities = {parity.name: parity for parity in report.parities}
    rows = [
        (
            f"`{name}`",
            purpose,
            f"{report.sizes_bytes[name] / 1e6:.1f} MB",
            f"{parities[name].max_abs_difference:.1e}",
            f"{parities[name].min_cosine:.5f}",
        )
        for name, purpose in _PURPOSES.items()
    ]
    titles = ("File", "Holds", "Size", "Largest difference", "Lowest cosine")
    num_texts = report.parities[0].num_texts
    return (
        "## Files and parity\n\n"
        + _table(titles, rows)
        + (
            "\n\nDifferences are to the encoder as it was cut from the supernet, over the last hidden states of "
            f"{num_texts} English texts in one padded batch; cosines are of their embeddings by {_pooling(report)}."
            if report.head is None
            else f"\n\nDifferences and cosines are to the logits of the trained model, of {num_texts} English texts."
        )
    )


def _usage(report: ExportReport) -> str:
    trust = "" if is_stock(report.model_class) else ", trust_remote_code=True"
    note = (
        ""
        if is_stock(report.model_class)
        else f"The shape has no stock class: the code is in `{MODELING_FILE.name}`, beside the weights.\n\n"
    )
    auto = auto_class(report.model_class)
    answer, output = ("states", "last_hidden_state") if report.head is None else ("logits", "logits")
    texts = '["A text."]' if report.head is None or not report.head.spec.is_pair else '["A text."], ["Another one."]'
    words = ""
    if report.head is not None and report.head.spec.kind == "tagging":
        texts, words = '[["A", "text", "."]]', ", is_split_into_words=True"
    pooler = ""
    if report.model_class == "BertModel":
        pooler = (
            "\n\nThe model was trained for its last hidden state. `pooler_output` is only the tanh of the first "
            f"token's state (an identity pooler); use {_pooling(report)}."
        )
    which = "the states that are wanted" if report.head is None else "the first token of each word"
    positions = f'inputs["positions"] = np.array([[0, 2]])  # of each text, {which}\n'
    imports = "import numpy as np\nimport onnxruntime" if report.with_positions else "import onnxruntime"
    positions = positions if report.with_positions else ""
    return f"""## Use

{note}```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})
model = {auto}.from_pretrained("FOLDER"{trust})
{answer} = model(**tokenizer({texts}, padding=True, truncation=True{words}, return_tensors="pt")).{output}
```
{_sentence_transformers(report, trust)}
```python
{imports}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})
session = onnxruntime.InferenceSession("FOLDER/model.onnx")  # or model.int8.onnx
inputs = tokenizer({texts}, padding=True, truncation=True{words}, return_tensors="np", return_token_type_ids=True)
{positions}{answer} = session.run(["{output}"], {{name: ids.astype("int64") for name, ids in inputs.items()}})[0]
```{pooler}"""


def _sentence_transformers(report: ExportReport, trust: str) -> str:
    if report.head is not None:
        return ""
    return f"""
```python
from sentence_transformers import SentenceTransformer

embeddings = SentenceTransformer("FOLDER"{trust}).encode(["A text.", "Another one."])  # {_pooling(report)}
```
"""


def _pooling(report: ExportReport) -> str:
    return "mean pooling" if report.pooling == "mean" else "position 0"


def _origin(facts: CardFacts) -> str:
    rows = {
        "Weights from": facts.supernet,
        "Teacher": facts.teacher,
        "Licences": facts.license_notes,
        "Made by": f"`{facts.command}`" if facts.command else None,
    }
    known = [(name, value) for name, value in rows.items() if value]
    return "## Origin\n\n" + _table(("", ""), known) if known else ""


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (titles, ("---",) * len(titles), *rows)
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
