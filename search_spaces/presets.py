"""The search spaces that come with the project, and how a space is found by name or file.

===================  ============  ==============================================================================
name                 architectures what it holds
===================  ============  ==============================================================================
stock                1,242         uniform encoders that a stock Hugging Face BERT holds; sizes that suit SIMD
stock-factorised     3,588         the same, each also with embedding tables 64 or 128 wide (stock ELECTRA)
autotinybert-mlm     11,391,072    AutoTinyBERT's space of its MLM supernet
autotinybert-kd      47,462,800    AutoTinyBERT's space of its distilled supernet
===================  ============  ==============================================================================

Both AutoTinyBERT spaces (Yin et al., 2021, arXiv 2107.13686) take 1..8 layers, hidden sizes 128..768 in steps of 4
(161 choices) and feed-forward sizes 128..3072 in steps of 4 (737), all layers alike, embeddings as wide as the hidden
size. The MLM one has 1..12 heads of width 64: 8 * 161 * 737 * 12 = 11,391,072 architectures, the published 11.4
million. The KD one has 12 heads of width 15..64, which is a q/k/v width of 180..768 in steps of 12 (50 choices):
8 * 161 * 737 * 50 = 47,462,800, the published 47.5 million. Their released search code steps hidden sizes by 16 and
feed-forward sizes by 32; these are the paper's finer steps.
"""

from dataclasses import replace
from pathlib import Path

from search_spaces.choices import AS_HIDDEN
from search_spaces.errors import InvalidInputError, unknown_name
from search_spaces.space import SearchSpace


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

PRESETS: dict[str, SearchSpace] = {
    space.name: space
    for space in (
        _STOCK,
        replace(_STOCK, name="stock-factorised", embedding_size=(64, 128, AS_HIDDEN)),
        _AUTOTINYBERT_MLM,
        replace(_AUTOTINYBERT_MLM, name="autotinybert-kd", num_heads=(12,), head_size=_steps(15, 64)),
    )
}


def load_space(name_or_path: str | Path) -> SearchSpace:
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
        return SearchSpace.from_toml(path)
    raise InvalidInputError(f"{unknown_name('search space', name, PRESETS)} Or give the path of a TOML file.")
