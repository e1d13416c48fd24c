"""A profile that was carried here: it predicts what it has seen, and refuses the rest."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.latency import Conditions
from nas.devices.carried import CarriedProfile, check_profile_name
from nas.devices.features import UNIFORM_FEATURES
from nas.devices.fingerprint import Fingerprint
from nas.devices.predictor import Sample
from nas.devices.profile import Profile
from nas.devices.profiling import measure_profile
from nas.devices.runner import facts
from nas.devices.shapes import choose_shapes
from nas.devices.target import Settings
from nas.errors import InvalidInputError
from search_spaces.architecture import TextSpec
from search_spaces.chain_space import ChainSpace
from search_spaces.choices import AS_HIDDEN
from search_spaces.cost import num_macs
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    "tiny", num_layers=(1, 2, 3), hidden_size=(32, 64), intermediate_size=(32, 64, 128), head_size=(16,)
)
TEXT = TextSpec(vocab_size=500)


def within(**changes):
    facts = {"num_layers": (1, 3), "hidden_size": (32, 64), "intermediate_size": (32, 100, 128), "head_size": (16,)}
    return SearchSpace("mine", **{**facts, **changes})


def width(name):
    """The truth, told by a shape's name such as L3-D64-F128-H4x16."""
    return 0.1 + int(name[1]) * int(name.split("-")[1][1:]) / 100


_CONTENT = []


@pytest.fixture
def path(fake, tmp_path):
    if not _CONTENT:  # building the shapes' graphs takes a second
        measure_profile(fake(width)[0], SPACE, TEXT, tmp_path / "first.json", num_samples=18)
        _CONTENT.append((tmp_path / "first.json").read_bytes())
    (tmp_path / "board.json").write_bytes(_CONTENT[0])
    return tmp_path / "board.json"


@pytest.fixture
def carried(path):
    return CarriedProfile.read("board", path)


def test_it_predicts_what_was_measured_under_its_own_name(carried):
    predictor = carried.predictor(SPACE, TEXT)
    latency = predictor.predict(SPACE.largest())
    assert latency.p50_s == pytest.approx(0.003 * width(SPACE.largest().key()), rel=0.1)
    assert latency.source == "predicted"
    assert latency.conditions == carried.conditions
    assert carried.conditions.device == "board"
    assert carried.conditions.fingerprint == carried.fingerprint.digest
    assert carried.description == f"predicted from a profile of {carried.measured_at[:10]}: {carried.fingerprint}"
    assert not hasattr(carried, "measure")


def test_it_holds_the_settings_it_was_measured_with(carried):
    assert carried.settings == Settings()
    carried.check(Settings())


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"batch_size": 8}, "batch_size 8"),
        ({"seq_len": 32}, "seq_len 32"),
        ({"threads": 2}, "threads 2"),
        ({"precision": "int8"}, "precision int8"),
        ({"runtime": "openvino"}, "runtime openvino"),
        ({"runtime": "torch", "precision": "bf16"}, "runtime torch, precision bf16"),
        ({"cpus": (1,)}, "cpus 1"),
    ],
)
def test_other_settings_are_refused_with_what_it_holds(carried, change, asked):
    holds = "it holds runtime onnxruntime, precision fp32, threads 1, batch_size 1, seq_len 128"
    with pytest.raises(InvalidInputError, match=f"says nothing about {asked}: {holds}"):
        carried.check(Settings(**change))


@pytest.mark.parametrize("space", [SPACE, within(), within(hidden_size=(48,)), within(num_layers=(2,))])
def test_a_space_within_what_was_seen_is_predicted(carried, space):
    assert carried.predictor(space, TEXT).predict(space.smallest()).p50_s > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": (1, 4)}, "num_layers 1 to 4, measured 1 to 3"),
        ({"hidden_size": (32, 96)}, "hidden_size 32 to 96, measured 32 to 64; num_heads 2 to 6, measured 2 to 4"),
        ({"hidden_size": (16, 32)}, "hidden_size 16 to 32"),
        ({"intermediate_size": (16, 32)}, "intermediate_size 16 to 32, measured 32 to 128"),
        ({"head_size": (32,)}, "head_size 32, measured 16"),
        ({"num_heads": (2, 3, 4)}, "heads that together are not as wide as the layers"),
        ({"num_heads": (8,)}, "num_heads 8, measured 2 to 4"),
        ({"embedding_size": (32, AS_HIDDEN)}, "embeddings that are not as wide as the layers"),
        ({"embedding_size": (128,)}, "embedding_size 128, measured 32 to 64"),
    ],
)
def test_a_space_beyond_what_was_seen_is_refused(carried, change, message):
    with pytest.raises(InvalidInputError, match=f"goes beyond what the profile .*{message}.*nothing is guessed"):
        carried.predictor(within(**change), TEXT)


def test_other_encoders_are_refused(carried):
    with pytest.raises(InvalidInputError, match="of encoders with gelu, and these have relu"):
        carried.predictor(SPACE, TextSpec(hidden_act="relu"))
    with pytest.raises(InvalidInputError, match=r"texts of 128 tokens, .* at most 64"):
        carried.predictor(SPACE, TextSpec(max_positions=64))


def edited(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(schema_version=99),
        lambda data: data.pop("fingerprint"),
        lambda data: data.update(extra=1),
        lambda data: data.update(measured_at="yesterday"),
        lambda data: data["fingerprint"].update(num_cores=-1),
        lambda data: data["predictor"].update(anchor_reference_s=math.nan),
        lambda data: data["predictor"].update(anchor_reference_s=-1),
        lambda data: data["predictor"].update(level_interval=[0, math.inf]),
        lambda data: data["predictor"]["samples"][0].update(ratio=math.inf),
        lambda data: data["predictor"]["samples"][0].update(ratio=0),
        lambda data: data["predictor"]["samples"].append(data["predictor"]["samples"][0]),
        lambda data: data["predictor"]["samples"].clear(),
        lambda data: data["predictor"]["conditions"].update(runtime="abacus 1"),
        lambda data: data["predictor"]["conditions"].update(precision="fp2"),
        lambda data: data["predictor"]["conditions"].update(threads=0),
        lambda data: data["predictor"]["samples"][0]["architecture"].update(narrow_from=1),
        lambda data: data["predictor"]["samples"][0]["architecture"]["blocks"][0]["sublayers"].pop(),
    ],
)
def test_a_profile_edited_by_hand_is_refused_in_one_sentence(path, change):
    edited(path, change)
    with pytest.raises(
        InvalidInputError, match=r"the profile .*board\.json cannot be used: .*nas devices profile"
    ) as caught:
        CarriedProfile.read("board", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"3", b"[" * 100_000])
def test_a_file_that_is_no_profile_is_refused(tmp_path, content):
    path = tmp_path / "board.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="cannot be used"):
        CarriedProfile.read("board", path)


def test_a_file_that_is_not_there_or_too_large_is_refused(path, tmp_path):
    for place in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InvalidInputError, match="cannot be used: cannot read it"):
            CarriedProfile.read("board", place)
    with path.open("ab") as file:
        file.truncate(20_000_001)
    with pytest.raises(InvalidInputError, match="at most 20000000 bytes"):
        CarriedProfile.read("board", path)


@pytest.mark.parametrize("name", ["board", "board.toml", ".json"])
def test_a_profile_is_written_to_a_file_that_is_known_as_one(tmp_path, name):
    with pytest.raises(InvalidInputError, match=r"must end in \.json"):
        check_profile_name(tmp_path / name)
    check_profile_name(tmp_path / "board.json")


NARROW = replace(SPACE, num_layers=(2, 3), num_narrow_layers=(0, 1))
CHAINS = ChainSpace("chains", 2, 3, (32, 64), head_size=16)


def work(shape):
    """The truth of any encoder: its multiply-accumulates."""
    return 0.1 + num_macs(shape, 128) / 1e8


def carried_of(space, num=24):
    """A profile as another machine wrote it."""
    shapes = choose_shapes(space, num, seed=0)
    return CarriedProfile(
        "far",
        Path("far.json"),
        Profile(
            conditions=Conditions("cpu", "f00d", "onnxruntime 1.0"),
            fingerprint=Fingerprint.from_facts(facts()),
            description="a far machine",
            hidden_act="gelu",
            space=space.to_dict(),
            samples=tuple(Sample(shape, work(shape)) for shape in shapes),
            anchor_reference_s=0.003,
            level_interval=(0.98, 1.02),
            measured_at="2026-03-04T05:06:07+00:00",
        ),
    )


@pytest.mark.parametrize("space", [NARROW, CHAINS], ids=["narrow", "chains"])
def test_narrow_layers_and_chains_are_carried(space, tmp_path):
    (tmp_path / "far.json").write_text(carried_of(space).profile.to_json())
    carried = CarriedProfile.read("far", tmp_path / "far.json")
    assert carried.space == space
    predictor = carried.predictor(space, TEXT)
    for shape in (space.largest(), space.smallest()):
        assert predictor.predict(shape).p50_s == pytest.approx(0.003 * work(shape), rel=0.05)


@pytest.mark.parametrize(
    ("measured", "asked", "message"),
    [
        (NARROW, replace(NARROW, num_layers=(3,), num_narrow_layers=(2,)), "num_narrow_layers 2, measured 0 to 1"),
        (SPACE, NARROW, "num_narrow_layers 0 to 1, measured 0"),
        (NARROW, CHAINS, "chains of blocks, measured only layers that are all alike"),
        (CHAINS, SPACE, "chains of blocks, measured only layers that are all alike, or the reverse"),
        (CHAINS, replace(CHAINS, hidden_size=(32, 96)), "hidden_size 32 to 96, measured 32 to 64"),
        (CHAINS, replace(CHAINS, places_per_block=4), "sub-layers 6 to 8, measured 1 to 6"),
        (CHAINS, replace(CHAINS, embedding_size=(16,)), "embedding_size 16, measured 32 to 64"),
        (CHAINS, replace(CHAINS, feed_forward_ratio=2), "other proportions"),
        (replace(CHAINS, operations=("identity", "conv3", "attention")), CHAINS,
         "conv5, conv7, feed_forward, of which none was measured"),
    ],
)  # fmt: skip
def test_what_a_profile_of_another_kind_does_not_span_is_refused(measured, asked, message):
    with pytest.raises(InvalidInputError, match=f"goes beyond what the profile .*{message}"):
        carried_of(measured).predictor(asked, TEXT)


def test_a_profile_from_before_narrow_layers_and_chains_is_read(path, carried):
    def as_it_was(data):
        data["space"].pop("num_narrow_layers", None)
        coefficients = data["predictor"]["coefficients"]
        data["predictor"]["coefficients"] = {name: coefficients[name] for name in UNIFORM_FEATURES}

    edited(path, as_it_was)
    again = CarriedProfile.read("board", path)
    assert again.predictor(SPACE, TEXT).predict(SPACE.largest()) == carried.predictor(SPACE, TEXT).predict(
        SPACE.largest()
    )
