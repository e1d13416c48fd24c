import dataclasses
import json

import pytest
import yaml
from small_encoders import ARCHITECTURES, build_encoder

from analysis.latency import Conditions, Latency, Tail
from nas.export.card import CardFacts, describe, render_card, write_card
from nas.export.export import export_model
from search_spaces.cost import num_macs, num_parameters
from search_spaces.errors import InvalidInputError

LATENCY = Latency(
    Conditions("cpu", "0123abcd", "onnxruntime 9.9", threads=3, batch_size=2, seq_len=77),
    "measured",
    "noisy",
    p50_s=0.0123456,
    low_s=0.0119,
    high_s=0.0131,
    p90=Tail(0.02, 0.019, 0.021),
    samples_s=(0.0123456,) * 8,
    anchor_samples_s=(0.01,) * 8,
    anchor_reference_s=0.01,
    num_rounds=4,
)
FACTS = CardFacts(
    quality=0.87654,
    quality_name="agreement with the teacher, 1.0 is the teacher",
    latencies={"model.onnx": [LATENCY], "model.int8.onnx": [dataclasses.replace(LATENCY, verdict="ok", p50_s=0.0121)]},
    device="Some Processor at 3 GHz",
    supernet="a supernet",
    teacher="a | teacher",
    license="apache-2.0",
    license_notes="teacher Apache-2.0",
    command="nas search --latency-ms 10",
)


def row(card, start):
    return next(line for line in card.splitlines() if line.startswith(f"| {start} |"))


@pytest.fixture(scope="module")
def card(exports):
    return render_card(exports["bert"][1], FACTS)


def test_a_latency_is_stated_with_its_conditions(card):
    latency = card.split("## Latency")[1].split("##")[0]
    for name, p50, verdict in (("model.onnx", "12.35 ms", "noisy"), ("model.int8.onnx", "12.10 ms", "ok")):
        cells = [cell.strip() for cell in row(latency, f"`{name}`").strip("|").split("|")]
        assert cells[1:] == [
            "cpu",
            "onnxruntime 9.9, fp32",
            "3",
            "2",
            "77",
            p50,
            "20.00 ms",
            "11.90 ms to 13.10 ms",
            f"measured, {verdict}",
        ]
    assert "Some Processor at 3 GHz" in latency


def test_shape_quality_and_origin_are_stated(card, exports):
    report = exports["bert"][1]
    assert "3 layers, hidden size 48, 4 heads of 12, feed-forward size 80" in row(card, "Shape")
    assert f"{num_parameters(report.architecture, report.text):,}" in row(card, "Parameters")
    assert f"{num_macs(report.architecture, 128):,}" in row(card, "Multiply-accumulates")
    assert "**0.8765** (agreement with the teacher, 1.0 is the teacher)" in card
    assert "a \\| teacher" in row(card, "Teacher")
    assert "nas search --latency-ms 10" in row(card, "Made by")
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"


def test_what_is_not_known_is_left_out(exports):
    card = render_card(exports["bert"][1], CardFacts())
    for absent in ("Quality", "Latency", "Origin", "license", "None", "Teacher"):
        assert absent not in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"


def test_the_python_on_the_card_runs(exports, monkeypatch, tmp_path):
    pytest.importorskip("sentence_transformers")
    for name in ("electra", "blocks", "sparse queries"):
        report = exports[name][1]
        examples = render_card(report, CardFacts()).split("```python\n")[1:]
        assert len(examples) == 3
        for example in examples:
            code = example.split("```")[0].replace("FOLDER", str(report.folder))
            names = {}
            exec(code, names)
            result = names.get("states", names.get("embeddings"))
            assert result.shape[-1] == report.architecture.hidden_size


def test_a_card_can_be_written_again(exports, tmp_path):
    report = exports["bert"][1]
    write_card(tmp_path, report, CardFacts())
    write_card(tmp_path, report, FACTS)
    assert (tmp_path / "README.md").read_text() == render_card(report, FACTS)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_a_shape_of_unlike_blocks_is_spelled_out():
    assert describe(ARCHITECTURES["blocks"]) == (
        "hidden size 32: attention 2 x 16, feed-forward 40, feed-forward 24; "
        "hidden size 20: attention 3 x 10; hidden size 28: feed-forward 36"
    )


def test_narrow_layers_and_their_consequence_are_stated(exports):
    card = exports["sparse queries"][1].card_path.read_text()
    assert "4 layers, hidden size 48, 4 heads of 12" in row(card, "Shape")
    assert "the last 6 of 8 sub-layers are narrow" in row(card, "Shape")
    assert "position 0" in row(card, "Output")
    assert "ChainEncoderModel" in row(card, "Transformers class")
    assert "modeling_chain_encoder.py" in card
    assert "mean pooling" not in card
    assert "a state for every token" in row(exports["bert"][1].card_path.read_text(), "Output")
    assert "separable convolution 7" in exports["convolutions"][1].card_path.read_text()


def test_a_full_encoder_that_was_judged_by_position_0_says_so(tokenizer_dir, tmp_path):
    encoder = build_encoder(ARCHITECTURES["bert"])
    report = export_model(encoder, tokenizer_dir, tmp_path / "first", pooling="first")
    card = report.card_path.read_text()
    assert "mean pooling" not in card
    assert "use position 0" in card
    modes = json.loads((report.folder / "1_Pooling" / "config.json").read_text())
    assert (modes["pooling_mode_cls_token"], modes["pooling_mode_mean_tokens"]) == (True, False)
    narrow = build_encoder(ARCHITECTURES["sparse queries"])
    with pytest.raises(InvalidInputError, match="mean pooling needs the states of all positions"):
        export_model(narrow, tokenizer_dir, tmp_path / "mean", pooling="mean")
    assert not (tmp_path / "mean").exists()


def test_a_latency_of_an_unknown_file_is_refused():
    with pytest.raises(InvalidInputError, match="latencies must be named"):
        CardFacts(latencies={"model.bin": [LATENCY]})
