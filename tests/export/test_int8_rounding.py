"""What a search judges an int8 model by is what its exported file computes: the same rounding, in torch."""

import copy
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from small_encoders import ARCHITECTURES, TEXT, build_encoder, padded_batch

from nas.export.export import encoder_weights
from nas.export.int8 import WEIGHT_LEVELS, quantize
from nas.export.onnx_graph import build_graph
from nas.search.exit_policy import prefixes
from search_spaces.architecture import Architecture
from supernet.checkpoint import load_supernet
from supernet.data import Batch
from supernet.encoder import Encoder
from supernet.extract import extract
from supernet.int8 import LINEAR_LEVELS, layer_runner, round_encoder, run_by_length, subnet_runner
from supernet.pooling import text_states
from supernet.teacher import load_tokenizer


def int8_session(encoder, path):
    quantize(build_graph(encoder.architecture, encoder.text, encoder_weights(encoder)), path)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_alone(session, batch):
    """Each text by itself, without its padding; the states of its real tokens, or of position 0."""
    found = []
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        inputs = {name: tensor[row : row + 1, :length].numpy() for name, tensor in batch.items()}
        found.append(session.run(None, inputs)[0][0])
    return found


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_rounded_encoder_computes_what_its_file_computes(tmp_path, name):
    encoder = build_encoder(ARCHITECTURES[name])
    session = int8_session(encoder, tmp_path / "model.int8.onnx")
    batch = padded_batch(TEXT, 12, 24)
    rounded = round_encoder(copy.deepcopy(encoder))
    with torch.no_grad():
        plain = encoder(**batch)
        ours = run_by_length(rounded, Batch(**batch))
    theirs = run_alone(session, batch)
    off, lost = [], []
    for row, states in enumerate(theirs):
        off.append(np.abs(ours[row, : len(states)].numpy() - states).mean())
        lost.append(np.abs(plain[row, : len(states)].numpy() - states).mean())
    # A value on the border between two levels may fall to either side, and one level then shows further on.
    assert np.median(off) < 0.1 * np.median(lost)
    assert np.mean(off) < 0.3 * np.mean(lost)


def test_of_the_shipped_supernet_states_and_answers_are_those_of_the_file(tmp_path, paragraphs):
    loaded = load_supernet()
    shape = Architecture.bert(3, 256, 640, 8)
    subnet = Architecture.from_dict({**shape.to_dict(), "precision": "int8"})
    run = subnet_runner(loaded.supernet, subnet)
    tokenizer = load_tokenizer(str(loaded.tokenizer_dir), loaded.text)
    encoded = tokenizer(paragraphs[:48], padding=True, truncation=True, max_length=64, return_tensors="pt")
    batch = Batch(encoded["input_ids"], encoded["attention_mask"], torch.zeros_like(encoded["input_ids"]))
    with torch.inference_mode():
        ours = text_states(run(batch), batch.attention_mask, "mean")
        plain = subnet_runner(loaded.supernet, shape)(batch)
        plain = text_states(plain, batch.attention_mask, "mean")
    session = int8_session(extract(loaded.supernet, shape), tmp_path / "model.int8.onnx")
    alone = run_alone(
        session, {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    )
    theirs = torch.stack([torch.from_numpy(states).mean(0) for states in alone])
    distances = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    lost = (plain - theirs).norm(dim=1) / theirs.norm(dim=1)
    assert float(distances.median()) < 0.25 * float(lost.median())
    assert float(torch.cosine_similarity(ours, theirs).min()) > 0.999
    head = torch.randn(ours.shape[1], 8, generator=torch.Generator().manual_seed(0))
    answers = [((states - theirs.mean(0)) @ head).argmax(1) for states in (ours, theirs)]
    assert float((answers[0] == answers[1]).float().mean()) > 0.95


def test_both_rooms_mean_the_same_levels():
    assert LINEAR_LEVELS == WEIGHT_LEVELS


def test_the_states_behind_every_layer_are_those_of_the_file_that_ends_there(tmp_path, paragraphs):
    loaded = load_supernet()
    shape = Architecture.bert(3, 256, 640, 8)
    encoder = extract(loaded.supernet, shape)
    tokenizer = load_tokenizer(str(loaded.tokenizer_dir), loaded.text)
    encoded = tokenizer(paragraphs[:16], padding=True, truncation=True, max_length=64, return_tensors="pt")
    batch = Batch(encoded["input_ids"], encoded["attention_mask"], torch.zeros_like(encoded["input_ids"]))
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():
        ours = layer_runner(loaded.supernet, replace(shape, precision="int8"))(batch)
        plain = layer_runner(loaded.supernet, shape)(batch)
    assert ours.shape == plain.shape == (3, *batch.input_ids.shape, 256)
    for place, prefix in enumerate(prefixes(shape)):
        upto = Encoder(prefix, loaded.text)
        upto.load_state_dict({name: encoder.state_dict()[name] for name in upto.state_dict()})
        theirs = run_alone(int8_session(upto, tmp_path / f"{place}.onnx"), inputs)
        off = [np.abs(ours[place, row, : len(states)].numpy() - states).mean() for row, states in enumerate(theirs)]
        lost = [np.abs(plain[place, row, : len(states)].numpy() - states).mean() for row, states in enumerate(theirs)]
        assert np.median(off) < 0.25 * np.median(lost)
