"""Can a supernet be trusted to rank? Subnets' inherited quality beside what each reaches when it is trained by itself.

A search believes that the order which shared weights put subnets in is the order that they would have on their own.
Here some subnets are trained alone, all for the same length and from the same start as the supernet, and the two orders
are compared; so are those by the number of parameters, by multiply-accumulates and by W-PCA, which cost almost nothing
and must be beaten. With a task the truth is the accuracy of each subnet after it alone was fine-tuned.

Everything that was found is in the folder's ``run.json`` after each subnet, and a training that was cut goes on from
its last checkpoint.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.rank import Agreement, agreements
from nas.errors import InvalidInputError
from nas.progress import Progress
from nas.rundir import RunDir
from nas.search.rank_request import RankRequest, choose_subnets
from search_spaces.architecture import Architecture
from search_spaces.cost import encoder_parameters, num_macs
from search_spaces.files import write_atomic

if TYPE_CHECKING:
    from nas.search.rank_judges import Judge
    from supernet.checkpoint import LoadedSupernet

INHERITED, PARAMETERS = "inherited", "parameters"
PROXIES = (PARAMETERS, "MACs", "W-PCA", "W-PCA inherited")
TRUSTED, SURE = 0.7, 0.5  # of Kendall's tau: the value, and the lower end of its interval
MACS_SEQ_LEN = 128
PAGE, DATA = "rank.html", "rank.json"

Score = Callable[[Architecture], float]


@dataclass(frozen=True)
class RankResult:
    """What a ranking found.

    Attributes:
        folder: Where it is kept.
        truth_name: What the truth is.
        inherited_name: What the inherited quality is.
        rows: By subnet its key, its truth and every score.
        agreements: By score how well it ranks.
    """

    folder: Path
    truth_name: str
    inherited_name: str
    rows: tuple[Mapping[str, Any], ...]
    agreements: Mapping[str, Agreement]

    @property
    def verdict(self) -> str:
        """Whether the supernet can be trusted to rank, in a sentence."""
        return verdict(self.agreements, len(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """What ``nas rank --json`` prints."""
        return {
            "run": str(self.folder),
            "truth": self.truth_name,
            "inherited": self.inherited_name,
            "verdict": self.verdict,
            "agreements": {name: asdict(agreement) for name, agreement in self.agreements.items()},
            "subnets": [dict(row) for row in self.rows],
        }


def verdict(found: Mapping[str, Agreement], num_subnets: int) -> str:
    """Whether inherited quality can be trusted to rank, in a sentence.

    Args:
        found: By score how well it ranks, :data:`INHERITED` and the proxies.
        num_subnets: How many it rests on.
    """
    if INHERITED not in found:
        return (
            f"Nothing can be told: all {num_subnets} subnets are equally good, by inherited quality or by themselves."
        )
    ours = found[INHERITED].kendall
    said = f"Kendall {ours.value:.2f} [{ours.low:.2f}, {ours.high:.2f}] over {num_subnets} subnets"
    proxies = {name: found[name] for name in PROXIES if name in found}
    if ours.low <= 0:
        return f"No: that the supernet ranks better than chance is not shown ({said})."
    best = max(proxies, key=lambda name: proxies[name].kendall.value, default=None)
    if best is None:
        return f"The supernet ranks better than chance ({said})."
    theirs = proxies[best].kendall
    beside = f"{said}; the best proxy, {best}, {theirs.value:.2f} [{theirs.low:.2f}, {theirs.high:.2f}]"
    if ours.value <= theirs.value:
        return f"Not more than a proxy that costs nothing: {beside}."
    gain = found[INHERITED].gain
    if ours.value >= TRUSTED:
        sure = "Yes" if ours.low >= SURE else "Probably"
        is_shown = gain is not None and gain.low > 0
        more = "" if is_shown else "; more subnets, or subnets of one size, would show whether it tells more than size"
        return f"{sure}, the supernet can be trusted to rank: {beside}{more}."
    return f"Only roughly: {beside}."


def rank(request: RankRequest, folder: Path, progress: Progress, *, command: str) -> RankResult:
    """Trains subnets alone and compares the orders; see the module.

    Args:
        request: What to rank.
        folder: For everything that is found; must be absent or empty.
        progress: What is told about it.
        command: The command that asks for it, which the folder keeps.

    Raises:
        InvalidInputError: The request, the supernet, the teacher, a corpus, the task or the folder breaks a law.
    """
    request.check()
    ranking = _Ranking.prepared(request)
    facts = {"commands": [command], "rank": request.to_dict(), "supernet": ranking.loaded.digest, "subnets": {}}
    run = RunDir.create(folder, facts=facts)
    with run.locked():
        return ranking.run(run, progress)


def resume(folder: Path, progress: Progress, *, command: str) -> RankResult:
    """Goes on with a ranking that was interrupted, or reads one that is finished.

    Raises:
        InvalidInputError: The folder does not hold one, or the supernet changed.
    """
    run = RunDir.open(folder)
    with run.locked():
        facts = run.read()
        ranking = _Ranking.prepared(RankRequest.from_dict(facts.get("rank")))
        if facts.get("supernet") != ranking.loaded.digest:
            raise InvalidInputError(f"the supernet of {folder} changed since it began; start a new ranking")
        run.add_command(command)
        return ranking.run(run, progress)


@dataclass(frozen=True)
class _Ranking:
    """A ranking whose supernet is loaded and whose subnets are chosen."""

    request: RankRequest
    loaded: "LoadedSupernet"
    subnets: list[Architecture]

    @classmethod
    def prepared(cls, request: RankRequest) -> "_Ranking":
        """Finds what a request names and checks that it goes together, before anything is trained."""
        from supernet.checkpoint import load_supernet
        from supernet.inherit import space_of

        loaded = load_supernet(request.supernet)
        if request.task is None and loaded.reference is None:
            raise InvalidInputError(
                f"the supernet in {loaded.folder} was trained without a teacher, so agreement with it is unknown; "
                "rank with --task FILE_OR_ID instead"
            )
        subnets = choose_subnets(loaded.space, request.num_subnets, request.band, request.seed)
        for subnet in subnets:
            space_of(subnet)
        return cls(request, loaded, subnets)

    def run(self, run: RunDir, progress: Progress) -> RankResult:
        """Trains and scores the subnets that are not known yet, and says how the orders agree."""
        rows = dict(run.read().get("subnets", {}))
        waiting = [subnet for subnet in self.subnets if subnet.key() not in rows]
        if waiting:
            progress.note("Reading what is learned from.")
            judge, scores = self._tools(run, progress)
        for subnet in waiting:
            key, folder = subnet.key(), run.path / f"alone-{subnet.key()}"
            progress.start(f"{key} alone ({len(rows) + 1} of {len(self.subnets)})", 100)
            began_s = time.monotonic()
            row: dict[str, Any] = {name: score(subnet) for name, score in scores.items()}
            row["truth"] = judge(subnet, folder, lambda share, loss: progress.update(round(100 * share), loss=loss))
            rows[key] = {"key": key, **row, "seconds": round(time.monotonic() - began_s, 1)}
            run.update(subnets=rows)
            progress.finish(f"{row[INHERITED]:.4f} inherited, {row['truth']:.4f} alone")
            shutil.rmtree(folder, ignore_errors=True)
        return self._concluded(run, [rows[subnet.key()] for subnet in self.subnets])

    def _tools(self, run: RunDir, progress: Progress) -> "tuple[Judge, dict[str, Score]]":
        """What trains a subnet alone, and what scores it."""
        from nas.search.rank_judges import Distilled, FineTuned
        from supernet.evaluate import TeacherAgreement, task_quality
        from supernet.pooling import pooling_of
        from supernet.proxies import WPca

        scores: dict[str, Score] = {}
        judge: Judge
        loaded = self.loaded
        agreement = None if loaded.reference is None else TeacherAgreement(loaded, pooling_of(loaded.space))
        if self.request.task is None:
            assert agreement is not None
            judge = Distilled(self.request, self.loaded)
            scores[INHERITED], inherited_name = agreement, agreement.name
        else:
            judge = FineTuned(self.request, self.loaded)
            quality = task_quality(judge.adapted(run.path / "adapted", progress))
            scores[INHERITED], inherited_name = quality, f"{quality.name} of the adapted supernet"
            if agreement is not None:
                scores[agreement.name] = agreement
        proxies: list[Score] = [encoder_parameters, lambda architecture: num_macs(architecture, MACS_SEQ_LEN)]
        if loaded.reference is not None:
            proxies += [WPca(loaded, seed=self.request.seed), WPca(loaded, "inherited")]
        scores |= zip(PROXIES, proxies, strict=False)
        run.update(truth_name=judge.name, inherited_name=inherited_name)
        return judge, scores

    def _concluded(self, run: RunDir, rows: list[dict[str, Any]]) -> RankResult:
        names = [name for name in rows[0] if name not in ("key", "truth", "seconds")]
        columns = {name: [float(row[name]) for row in rows] for name in names}
        truths = [float(row["truth"]) for row in rows]
        found = agreements(columns, truths, baseline=PARAMETERS, k=max(1, len(rows) // 5), seed=self.request.seed)
        facts = run.read()
        result = RankResult(run.path, facts["truth_name"], facts["inherited_name"], tuple(rows), found)
        write_atomic(run.path / DATA, json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")
        write_atomic(run.path / PAGE, _page(result))
        return result


HEAD = ("score", "Kendall", "Spearman", "regret of the best fifth", "over parameters")


def table_rows(result: RankResult) -> list[tuple[str, ...]]:
    """A row of text for each score, under :data:`HEAD`."""
    return [
        (
            name,
            *(f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in (found.kendall, found.spearman)),
            f"{found.regret.value:.4f} [{found.regret.low:.4f}, {found.regret.high:.4f}]",
            "-" if found.gain is None else f"{found.gain.value:+.2f} [{found.gain.low:+.2f}, {found.gain.high:+.2f}]",
        )
        for name, found in result.agreements.items()
    ]


def _page(result: RankResult) -> str:
    import html

    import pandas as pd

    from analysis.page import figure_html, page, table_html
    from analysis.plots import ranking_figure

    table = pd.DataFrame(result.rows)
    captions = {name: f"{name}: Kendall {found.kendall.value:.2f}" for name, found in result.agreements.items()}
    caption = (
        f"Each point is a subnet: its rank by a score, and its rank by {result.truth_name}. On the dotted line the two "
        f"agree. Inherited quality is {result.inherited_name}; intervals are of 90 %, by bootstrap over subnets."
    )
    body = [f'<p class="verdict">{html.escape(result.verdict)}</p>', table_html(HEAD, table_rows(result))]
    if captions:
        body.append(figure_html("ranks", caption, ranking_figure(table, captions, "truth")))
    shown = [name for name in table.columns if name != "seconds"]
    body.append(table_html(shown, ([_shown(row[name]) for name in shown] for row in result.rows)))
    return page("Can this supernet be trusted to rank?", "\n".join(body))


def _shown(value: object) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
