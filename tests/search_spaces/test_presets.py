import random

import pytest

from search_spaces import AS_HIDDEN, PRESETS, Architecture, InvalidInputError, load_space


def test_autotinybert_spaces_have_the_published_ranges_and_sizes():
    """Yin et al., 2021: 11.4 million and 47.5 million architectures."""
    mlm, kd = PRESETS["autotinybert-mlm"], PRESETS["autotinybert-kd"]
    for space in (mlm, kd):
        assert space.num_layers == tuple(range(1, 9))
        assert space.hidden_size == tuple(range(128, 769, 4))
        assert space.intermediate_size == tuple(range(128, 3073, 4))
        assert space.embedding_size == (AS_HIDDEN,)
    assert {heads * size for heads in mlm.num_heads for size in mlm.head_size} == set(range(64, 769, 64))
    assert {heads * size for heads in kd.num_heads for size in kd.head_size} == set(range(180, 769, 12))
    assert (mlm.size, kd.size) == (11_391_072, 47_462_800)


def test_architectures_that_autotinybert_found_lie_in_its_spaces():
    s1 = Architecture.bert(5, 564, 1054 // 4 * 4, 8, head_size=64)
    s4 = Architecture.bert(3, 320, 608, 4, head_size=64)
    kd_s4 = Architecture.bert(4, 256, 480, 12, head_size=16)
    assert s1 in PRESETS["autotinybert-mlm"]
    assert s4 in PRESETS["autotinybert-mlm"]
    assert kd_s4 in PRESETS["autotinybert-kd"]
    assert kd_s4 not in PRESETS["autotinybert-mlm"]


@pytest.mark.parametrize(("name", "size"), [("stock", 1_242), ("stock-factorised", 3_588)])
def test_stock_spaces_hold_only_shapes_of_stock_encoders(name, size):
    space = PRESETS[name]
    members = set(space.enumerate())
    assert len(members) == space.size == size
    for member in members:
        attention, feed_forward = member.uniform.attention, member.uniform.feed_forward
        assert attention.width == member.hidden_size
        assert member.hidden_size % 32 == feed_forward.intermediate_size % 64 == 0
        assert member.embedding_size in ({member.hidden_size} if name == "stock" else {member.hidden_size, 64, 128})


def test_stock_holds_the_teacher_of_the_shipped_supernet_as_its_largest():
    assert PRESETS["stock"].largest() == Architecture.bert(6, 384, 1536, 12)
    assert PRESETS["stock"].smallest() == Architecture.bert(1, 128, 128, 4)


def test_nas_bert_has_the_published_operations_and_about_the_published_size():
    """Xu et al., 2021: 24 places of 26 operations, heads 2/3/4/6/8, four blocks of one width each."""
    space = PRESETS["nas-bert"]
    assert (space.num_blocks, space.places_per_block) == (4, 6)
    operations = {space.block(width, [name]) for width in space.hidden_size for name in space.operations}
    assert len({block for block in operations if block.sublayers}) + 1 == 26
    heads = [space.block(width, ["attention"]).sublayers[0].num_heads for width in space.hidden_size]
    assert heads == [2, 3, 4, 6, 8]
    assert space.block(384, ["feed_forward"]).sublayers[0].intermediate_size == 1536
    runs = sum(5**length for length in range(7)) ** 4 - 1
    assert space.size == (5 * 3 - 1) * 5**3 * runs
    assert 1e20 < space.size < 1e21


def test_the_small_chains_suit_a_teacher_of_six_layers():
    space = PRESETS["nas-bert-small"]
    assert (space.num_blocks, space.places_per_block) == (3, 4)
    assert space.hidden_size[-1] == 384
    assert space.size == (4 * 3 - 1) * 4**2 * (sum(5**length for length in range(5)) ** 3 - 1)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_found_by_their_name_and_yield_members(name):
    space = load_space(name)
    assert space is PRESETS[name]
    assert space.name == name
    rng = random.Random(0)
    assert all(space.mutate(space.sample(rng), rng) in space for _ in range(50))


def test_a_space_is_loaded_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text("num_layers = 1\nhidden_size = 64\nintermediate_size = 64\nhead_size = 32\n")
    assert load_space(path) == load_space(str(path))
    monkeypatch.chdir(tmp_path)
    assert load_space("mine.toml").size == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stok", "unknown search space 'stok'. Did you mean 'stock'.* Or give the path of a TOML file"),
        ("", "unknown search space ''"),
        ("stok.toml", "cannot read search space 'stok.toml': No such file"),
        ("spaces/mine", "cannot read search space 'spaces/mine': No such file"),
    ],
)
def test_an_unknown_space_is_refused_with_a_way_out(name, message):
    with pytest.raises(InvalidInputError, match=message):
        load_space(name)
