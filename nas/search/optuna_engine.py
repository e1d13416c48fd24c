"""The engine for one machine: evaluates in this process, one architecture after the other. No start-up, no second copy.

A search that was killed and is run again on the same store ends with the same trials, in the same order, as one that
was not: every suggestion depends on the seed and the finished trials alone.
"""

from nas.search.ask_tell import AskTell, Ending, OnEvent, ShouldStop
from nas.search.objective import SearchProblem, evaluate
from nas.search.store import TrialStore


def run_in_process(
    problem: SearchProblem,
    store: TrialStore,
    *,
    sampler: str,
    seed: int,
    num_evaluations: int,
    on_event: OnEvent | None = None,
    should_stop: ShouldStop | None = None,
) -> Ending:
    """Searches until enough architectures are evaluated, none is left, or ``should_stop`` says so.

    Args:
        problem: What is searched; restrict it to its budget first.
        store: Where finished trials go, and where those of an earlier run come from.
        sampler: A key of ``SAMPLERS``.
        seed: Of all randomness.
        num_evaluations: How many architectures shall have been evaluated, those of earlier runs included.
        on_event: Told every record after it is in the store.
        should_stop: Asked before every evaluation.

    Returns:
        ``done``, ``exhausted`` (the space holds no more that fit) or ``stopped``.

    Raises:
        InvalidInputError: An argument breaks its law, or the store cannot be written.
        NasError: All of the first evaluations failed.
    """
    conversation = AskTell(
        problem, store, sampler=sampler, seed=seed, num_evaluations=num_evaluations, on_event=on_event
    )
    evaluator = None
    while not (should_stop is not None and should_stop()):
        suggestion = conversation.ask()
        if suggestion is None:
            break
        evaluator = evaluator or problem.make_evaluator()
        conversation.tell(suggestion, evaluate(evaluator, suggestion.architecture))
    return conversation.ending
