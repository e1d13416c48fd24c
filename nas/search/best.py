"""What a person wants to see while a search runs."""

from analysis.trial import OverBudgetTrial, Record, Trial
from nas.search.objective import SearchProblem


class BestSoFar:
    """Counts what a search came to and knows the best that is expected to fit.

    Args:
        problem: What is searched.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self.problem, self.num_evaluated, self.num_over_budget = problem, 0, 0
        self.best: Trial | None = None

    def see(self, record: Record) -> None:
        """Told every record."""
        if isinstance(record, OverBudgetTrial):
            self.num_over_budget += 1
            return
        self.num_evaluated += 1
        if not isinstance(record, Trial):
            return
        excesses = self.problem.constraints(self.problem.candidate(record.architecture)).values()
        fits = all(excess <= 0 for excess in excesses)
        if fits and (self.best is None or record.quality > self.best.quality):
            self.best = record

    @property
    def facts(self) -> dict[str, str | float]:
        """What a progress shows of the best."""
        if self.best is None:
            return {}
        best = self.best
        times = "/".join(f"{latency.p50_s * 1e3:.2f}" for latency in best.latencies)
        return {"best": best.key, "quality": round(best.quality, 4), "ms": times}
