import json
import shutil

import pytest
import torch
from supernet_cases import SPACES, random_supernet

from search_spaces.errors import InvalidInputError
from search_spaces.presets import PRESETS
from search_spaces.space import SearchSpace
from supernet.checkpoint import Reference, compact, expand, load_supernet, save_supernet


@pytest.fixture
def folder(tmp_path):
    supernet = random_supernet(SPACES["uniform"])
    reference = Reference(torch.randint(5, 600, (6, 9)), torch.ones(6, 9, dtype=torch.long), torch.randn(6, 64))
    save_supernet(tmp_path / "s", supernet, reference=reference, training={"steps": 3})
    return tmp_path / "s"


def test_a_supernet_comes_back_bit_for_bit(folder):
    loaded = load_supernet(folder)
    expected = random_supernet(SPACES["uniform"]).state_dict()
    assert loaded.space == SPACES["uniform"]
    assert loaded.training == {"steps": 3}
    for name, tensor in loaded.supernet.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_compact_weights_stay_within_half_a_quantisation_step():
    state = {"m": torch.randn(512, 384), "odd": torch.randn(512, 100), "bias": torch.randn(384)}
    stored = compact(state)
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored.values()) < 0.4 * 4 * 512 * 484
    restored = expand(stored)
    step = state["m"].view(512, -1, 64).abs().amax(-1) / 127
    error = (restored["m"] - state["m"]).view(512, -1, 64).abs().amax(-1)
    assert (error <= 0.51 * step + 1e-3 * step).all()
    torch.testing.assert_close(restored["bias"], state["bias"], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["weights.safetensors", "reference.safetensors", "supernet.json"])
def test_a_file_cut_at_any_byte_is_refused(folder, name):
    content = (folder / name).read_bytes()
    places = sorted(
        {0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 2, *range(0, len(content), len(content) // 15)}
    )
    for place in places:
        (folder / name).write_bytes(content[:place])
        with pytest.raises(InvalidInputError):
            load_supernet(folder)


def test_weights_of_another_space_are_refused(folder, tmp_path):
    other = random_supernet(SearchSpace("other", (1, 2), (32, 64), (32, 64), head_size=(16,)))
    save_supernet(tmp_path / "other", other, reference=None, training={})
    shutil.copy(tmp_path / "other" / "weights.safetensors", folder)
    with pytest.raises(InvalidInputError, match="belong to another space"):
        load_supernet(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    supernet = random_supernet(SPACES["uniform"])
    with torch.no_grad():
        supernet.layers[0].feed_forward.up.weight[0, 0] = float("nan")
    save_supernet(tmp_path, supernet, reference=None, training={})
    with pytest.raises(InvalidInputError, match="not finite"):
        load_supernet(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema 1"),
        ({"weight_format": "pickle"}, "weight_format"),
        ({"extra": 1}, "schema 1"),
        ({"config": {}}, "must hold exactly"),
    ],
)
def test_a_description_edited_by_hand_is_refused(folder, change, message):
    data = json.loads((folder / "supernet.json").read_text()) | change
    (folder / "supernet.json").write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match=message):
        load_supernet(folder)


def test_a_table_size_out_of_bounds_is_refused(folder):
    data = json.loads((folder / "supernet.json").read_text())
    data["config"]["table_size"] = 10**9
    (folder / "supernet.json").write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match="table_size"):
        load_supernet(folder)


def test_an_absent_folder_says_what_to_do(tmp_path):
    with pytest.raises(InvalidInputError, match="nas train"):
        load_supernet(tmp_path / "none")


def test_the_shipped_supernet_is_whole_small_and_of_the_default_space():
    loaded = load_supernet()
    assert loaded.space == PRESETS["stock"]
    assert loaded.reference is not None
    assert sum(file.stat().st_size for file in loaded.folder.rglob("*") if file.is_file()) <= 32_000_000
    assert (loaded.folder / "README.md").exists()
