"""The search spaces that come with the project, and how a space is found by name or file.

===================  ============  ==============================================================================
name                 architectures what it holds
===================  ============  ==============================================================================
stock                1,242         uniform encoders that a stock Hugging Face BERT holds; sizes that suit SIMD
stock-factorised     3,588         the same, each also with embedding tables 64 or 128 wide (stock ELECTRA)
stock-narrow         6,417         stock, each also with every number of narrow layers that leaves a full one, in both
                                   forms
autotinybert-mlm     11,391,072    AutoTinyBERT's space of its MLM supernet
autotinybert-kd      47,462,800    AutoTinyBERT's space of its distilled supernet
nas-bert             2.5 * 10^20   NAS-BERT's chains: 4 blocks of 6 places, 26 operations a place
nas-bert-small       8.4 * 10^10   the same for a teacher of 6 layers of 12 heads, 384 wide: 3 blocks of 4 places
===================  ============  ==============================================================================

Both AutoTinyBERT spaces (Yin et al., 2021, arXiv 2107.13686) take 1..8 layers, hidden sizes 128..768 in steps of 4
(161 choices) and feed-forward sizes 128..3072 in steps of 4 (737), all layers alike, embeddings as wide as the hidden
size. The MLM one has 1..12 heads of width 64: 8 * 161 * 737 * 12 = 11,391,072 architectures, the published 11.4
million. The KD one has 12 heads of width 15..64, which is a q/k/v width of 180..768 in steps of 12 (50 choices):
8 * 161 * 737 * 50 = 47,462,800, the published 47.5 million. Their released search code steps hidden sizes by 16 and
feed-forward sizes by 32; these are the paper's finer steps.

NAS-BERT (Xu et al., 2021, arXiv 2105.14444) takes 24 sub-layers in 4 blocks, each attention, feed-forward or a
separable convolution of kernel size 3, 5 or 7 at hidden size 128, 192, 256, 384 or 512, or none: 26 operations. Heads
are 64 wide and feed-forwards 4 times as wide as the hidden size. Embeddings are as wide as the first block, or 64 or
128. The sizes count distinct architectures: where an empty place stands in its block makes no difference.
"""

from dataclasses import replace
from pathlib import Path

from search_spaces.chain_space import ChainSpace
from search_spaces.choices import AS_HIDDEN
from search_spaces.errors import InvalidInputError, unknown_name
from search_spaces.space import SearchSpace
from search_spaces.spaces import Space, space_from_toml


def _steps(first: int, last: int, step: int = 1) -> tuple[int, ...]:
    return tuple(range(first, last + 1, step))


_STOCK = SearchSpace(
    name="stock",
    num_layers=_steps(1, 6),
    hidden_size=_steps(128, 384, 32),
    intermediate_size=_steps(128, 1536, 64),
    head_size=(32,),
)
_AUTOTINYBERT_MLM = SearchSpace(
    name="autotinybert-mlm",
    num_layers=_steps(1, 8),
    hidden_size=_steps(128, 768, 4),
    intermediate_size=_steps(128, 3072, 4),
    num_heads=_steps(1, 12),
    head_size=(64,),
)

PRESETS: dict[str, Space] = {
    space.name: space
    for space in (
        _STOCK,
        replace(_STOCK, name="stock-factorised", embedding_size=(64, 128, AS_HIDDEN)),
        _STOCK.with_narrowing(),
        _AUTOTINYBERT_MLM,
        replace(_AUTOTINYBERT_MLM, name="autotinybert-kd", num_heads=(12,), head_size=_steps(15, 64)),
        ChainSpace("nas-bert", 4, 6, (128, 192, 256, 384, 512), embedding_size=(64, 128, AS_HIDDEN)),
        ChainSpace("nas-bert-small", 3, 4, (128, 192, 256, 384), embedding_size=(64, 128, AS_HIDDEN), head_size=32),
    )
}


def load_space(name_or_path: str | Path) -> Space:
    """Finds a search space.

    Args:
        name_or_path: The name of a preset, or a TOML file of one's own.

    Raises:
        InvalidInputError: No preset has the name, or the file is not a space.
    """
    name = str(name_or_path)
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if isinstance(name_or_path, Path) or len(path.parts) > 1 or path.suffix == ".toml":
        return space_from_toml(path)
    raise InvalidInputError(f"{unknown_name('search space', name, PRESETS)} Or give the path of a TOML file.")
