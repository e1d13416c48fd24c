"""Pruning or rounding an encoder on text without labels: done once, for all tasks it is transferred to."""

import copy
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nas.errors import InvalidInputError
from nas.export.card import CardFacts, ExportReport
from nas.export.export import export_model
from nas.finish.companion import Companion
from nas.finish.dense_teacher import EncoderLesson, MaskedTokens, chunk_examples
from nas.finish.finetune import check_free, unfinished
from nas.finish.model import LoadedEncoder, has_head, load_model
from nas.finish.pace import Pace, measure_pace, planned_steps
from nas.finish.training import History, LoopConfig, train
from nas.progress import Progress, ended
from supernet.data import Masking, TokenChunks, tokenise
from supernet.teacher import weights_digest

NUM_EVALUATIONS = 8
MIN_TOKENS = 100_000
QUALITY_NAME = "share of its dense teacher's last states that the encoder explains, on held-out text"


@dataclass(frozen=True)
class TextTrained:
    """What training on text left.

    Attributes:
        report: The folder, its files and parities.
        history: Of the training.
        explained: Share of the teacher's last states that the encoder's explain, on held-out text.
    """

    report: ExportReport
    history: History
    explained: float


def train_on_text(
    source: str | Path,
    corpora: Sequence[str],
    out: Path,
    companion: Companion,
    *,
    loop: LoopConfig,
    minutes: float | None = None,
    seq_len: int = 64,
    teacher: str | Path | None = None,
    resume: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> TextTrained:
    """Trains an encoder to do as a dense one does, and writes its folder, whole or not at all.

    Args:
        source: The encoder's folder or hub id.
        corpora: Text files, folders or hub ids.
        out: The folder; must be absent or empty. ``OUT.unfinished`` beside it holds the run until then.
        companion: What happens to the encoder meanwhile.
        loop: How long and how fast; ``steps`` must be given where ``minutes`` are not.
        minutes: Wall-clock minutes of training, in place of steps.
        seq_len: Most tokens a text.
        teacher: An encoder as wide to learn from; None is the encoder itself as it was.
        resume: Whether to go on from an unfinished run.
        command: What made it, for the card.
        progress: What is told about it.

    Raises:
        InvalidInputError: An input breaks a law, the folder is occupied, or the loss is no longer finite.
    """
    check_free(out)
    work = unfinished(out)
    with ended(progress) as said:
        said.start("reading model and text")
        student, dense = _read_pair(source, teacher)
        facts = {
            "model": weights_digest(student.encoder),
            "teacher": weights_digest(dense.encoder),
            "corpora": list(corpora),
            "seq_len": seq_len,
            "beside": dict(companion.facts),
        }
        if minutes is not None:
            texts = _read_text(corpora, student, seq_len, 0)
            paced = partial(_pace, student, dense, companion, texts, loop)
            planned = planned_steps(minutes, paced, work, evaluations=NUM_EVALUATIONS, resume=resume, progress=said)
            loop = replace(loop, steps=planned)
        assert loop.steps is not None
        beside = companion.begin(student.encoder, loop.steps)
        chunks, held_out = _read_text(corpora, student, seq_len, loop.steps * loop.batch_size)
        lesson = EncoderLesson(student.encoder, dense.encoder, held_out, _masked_tokens(student, loop.seed))
        if lesson.tokens is not None:
            said.note("The model has a masked-language head: it learns tokens, as in the paper, and not states.")
        parts = {"encoder": student.encoder} | ({} if beside.module is None else {"beside": beside.module})
        every = max(1, NUM_EVALUATIONS * loop.steps_per_epoch(len(chunks)) // loop.steps)
        history = train(
            nn.ModuleDict(parts),
            chunk_examples(chunks),
            lesson.loss,
            lesson.evaluate,
            replace(loop, metric="explained", evaluations=min(1000, every)),
            work,
            fingerprint=facts,
            resume=resume,
            hooks=beside.hooks,
            progress=said,
        )
        said.start("exporting")
        report = _save(student, companion, out, history.best["explained"], command)
        shutil.rmtree(work, ignore_errors=True)
    return TextTrained(report, history, history.best["explained"])


def _pace(
    student: LoadedEncoder,
    dense: LoadedEncoder,
    companion: Companion,
    texts: tuple[TokenChunks, TokenChunks],
    loop: LoopConfig,
    num_steps: int,
) -> Pace:
    """Times the training on a copy of the student."""
    encoder = copy.deepcopy(student.encoder)
    beside = companion.begin(encoder, num_steps)
    lesson = EncoderLesson(encoder, dense.encoder, texts[1], _masked_tokens(student, loop.seed))
    parts = {"encoder": encoder} | ({} if beside.module is None else {"beside": beside.module})
    examples = chunk_examples(texts[0])
    return measure_pace(nn.ModuleDict(parts), examples, lesson.loss, lesson.evaluate, loop, beside)


def _read_pair(source: str | Path, teacher: str | Path | None) -> tuple[LoadedEncoder, LoadedEncoder]:
    """Reads an encoder and what teaches it, by default the same weights.

    Raises:
        InvalidInputError: One of them is no encoder, or the teacher is of another width or reads other tokens.
    """
    if has_head(source):
        raise InvalidInputError(f"{source} answers a task, which text without labels would not teach; give --task")
    student = load_model(source)
    student.encoder.to(_device()).requires_grad_(True)
    if teacher is None:
        student.encoder.embeddings.word.requires_grad_(False)  # it stays dense, and what it should learn it knows
        return student, LoadedEncoder(student.name, copy.deepcopy(student.encoder), student.tokenizer)
    dense = load_model(teacher)
    ours, theirs = student.encoder.architecture.hidden_size, dense.encoder.architecture.hidden_size
    if ours != theirs or dense.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise InvalidInputError(
            f"the teacher must be as wide as the model ({ours}, got {theirs}) and read the same tokens; leave "
            "--teacher out to learn from the model as it was"
        )
    dense.encoder.to(_device())
    return student, dense


def _read_text(
    corpora: Sequence[str], model: LoadedEncoder, seq_len: int, num_chunks: int
) -> tuple[TokenChunks, TokenChunks]:
    """Training and held-out chunks, not many more than a run of so many chunks reads."""
    longest = min(seq_len, model.encoder.text.max_positions)
    most = max(MIN_TOKENS, 2 * num_chunks * longest // len(corpora))
    return tokenise(corpora, model.tokenizer, seq_len=longest, max_tokens=most)


def _masked_tokens(model: LoadedEncoder, seed: int) -> MaskedTokens | None:
    """The masked-language head of a model that has one."""
    tokenizer = model.tokenizer
    if model.mlm_head is None or tokenizer.mask_token_id is None:
        return None
    weights = {name: tensor.to(_device()) for name, tensor in model.mlm_head.items()}
    return MaskedTokens(weights, Masking(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids)), seed)


def _save(
    student: LoadedEncoder, companion: Companion, out: Path, explained: float, command: str | None
) -> ExportReport:
    encoder = student.encoder.cpu().eval()
    facts = CardFacts(quality=explained, quality_name=QUALITY_NAME, supernet=Path(student.name).name, command=command)
    write_int8 = companion.end(encoder)
    with tempfile.TemporaryDirectory() as tokenizer_dir:
        student.tokenizer.save_pretrained(tokenizer_dir)
        return export_model(
            encoder,
            Path(tokenizer_dir),
            out,
            facts=facts,
            write_int8=write_int8,
            add=lambda folder: companion.write(folder, encoder),
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
