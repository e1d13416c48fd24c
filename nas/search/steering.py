"""The problem that a search works on: its space within the budgets, and what samplers are told beside it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.goal import Goal
from analysis.latency import Latency
from nas.devices.operation_table import OperationTable
from nas.errors import InfeasibleBudgetError
from nas.progress import Progress
from nas.search.assembly import Assembled, Assembler
from nas.search.exit_policy import before_evaluation, prefixes
from nas.search.objective import EvaluatorFactory, SearchProblem
from nas.search.predictors import Predictor
from nas.search.prepared import Prepared
from nas.search.request import SearchRequest
from nas.search.sizes import max_parameters
from search_spaces.architecture import Architecture
from search_spaces.chain_space import ChainSpace
from search_spaces.precisions import forms_of

#: Without a number of evaluations. Not as many as some seconds allow: the same seed shall give the same search.
DEFAULT_EVALUATIONS = 80
#: Of chains that were ranked by sums, as many as NAS-BERT evaluates (Xu et al., 2021, arXiv 2105.14444).
DEFAULT_ASSEMBLED = 100


def num_evaluations(request: SearchRequest, samplers: Sequence[str]) -> int:
    """How many architectures are evaluated, by each sampler where several are compared."""
    return request.num_evaluations or (DEFAULT_ASSEMBLED if tuple(samplers) == ("assembly",) else DEFAULT_EVALUATIONS)


def problem_for(
    request: SearchRequest,
    prepared: Prepared,
    predictors: Sequence[Mapping[str, Predictor]],
    tails: Sequence[float],
    factory: EvaluatorFactory,
    progress: Progress,
) -> SearchProblem:
    """The problem within its budgets; where even the nearest shape seems too slow, that shape alone.

    Args:
        request: What is asked.
        prepared: What it names.
        predictors: For each goal one for each precision; operation tables where chains shall be assembled.
        tails: For each goal how many times the median its percentile is thought to be.
        factory: Makes the evaluator.
        progress: What is told about it.

    Raises:
        InvalidInputError: The supernet's blocks are damaged, or assemble to too many chains.
    """
    from supernet.proxies import WPca

    steered = tuple(
        replace(goal, budget_s=None if goal.budget_s is None else goal.budget_s / tail, percentile=50)
        for goal, tail in zip(prepared.goals, tails, strict=True)
    )

    @functools.cache
    def predict(architecture: Architecture) -> tuple[Latency, ...]:
        if request.exits == "expected":
            return (before_evaluation(prefix_latencies(prepared, predictors, architecture)),)
        shape = prepared.timed(architecture.shape)
        return tuple(of_goal[architecture.precision].predict(shape) for of_goal in predictors)

    proxies = {"w-pca": functools.partial(WPca, prepared.loaded)}
    most = _most(request, prepared)
    problem = SearchProblem(
        prepared.space,
        prepared.loaded.text,
        predict,
        factory,
        steered,
        most,
        proxies,
        is_revised=request.exits is not None,
    )
    try:
        problem = problem.restricted()
    except InfeasibleBudgetError as error:
        progress.note(f"{error} It is tried all the same.")
        return _alone(problem, prepared, prepared.space.smallest())
    if "assembly" not in prepared.samplers:
        return problem
    tables = [of_goal["fp32"] for of_goal in predictors]
    found = _assembled(problem, prepared, tables, num_evaluations(request, prepared.samplers))
    progress.note(
        f"{found.num_combinations:,} chains can be assembled, {found.num_within:,} should be within what is allowed; "
        f"ranked in {found.took_s:.1f} s."
    )
    if not found.num_within and prepared.samplers == ("assembly",):
        progress.note("The one that should come closest is tried all the same.")
        return _alone(problem, prepared, found.chains[0] if found.chains else prepared.space.smallest())
    return replace(problem, assembled=found.chains)


def prefix_latencies(
    prepared: Prepared, predictors: Sequence[Mapping[str, Predictor]], architecture: Architecture
) -> list[Latency]:
    """Predicted latencies of a shape up to each of its layers, heads left out; of the first goal."""
    *early, whole = prefixes(architecture.shape)
    predict = predictors[0][architecture.precision].predict
    return [*map(predict, early), predict(prepared.timed(whole))]


def _most(request: SearchRequest, prepared: Prepared) -> dict[str, int]:
    """The most parameters by precision, as far as can be estimated; empty without a limit on size and memory."""
    found = {
        name: max_parameters(request.limits, (devices[name].conditions for devices in prepared.devices))
        for name in prepared.devices[0]
    }
    return {name: most for name, most in found.items() if most is not None}


def _alone(problem: SearchProblem, prepared: Prepared, architecture: Architecture) -> SearchProblem:
    """The problem with no more to choose from than a precision, and nothing to keep to."""
    listed = tuple(forms_of(prepared.space, architecture))
    unbounded: tuple[Goal, ...] = tuple(replace(goal, budget_s=None) for goal in problem.goals)
    return replace(problem, space=prepared.space, goals=unbounded, max_parameters={}, listed=listed)


def _assembled(problem: SearchProblem, prepared: Prepared, predictors: Sequence[Predictor], num: int) -> Assembled:
    from supernet.block_table import BlockTable

    space, whole = prepared.space, prepared.loaded.space
    tables = [predictor for predictor in predictors if isinstance(predictor, OperationTable)]
    assert isinstance(space, ChainSpace)  # Prepared sees to it
    assert isinstance(whole, ChainSpace)
    blocks = BlockTable.load(prepared.loaded.folder, whole)
    return Assembler(space, blocks, tables, problem.text).ranked(problem.goals, problem.max_parameters.get("fp32"), num)
