"""The Ray engine keeps the common promises, and its own: workers may die, clusters may be absent."""

import os
import signal
from pathlib import Path

import pytest
from engine_conformance import EngineConformance
from search_fakes import SPACE, problem, quality

from analysis.trial import FailedTrial, Trial
from nas.errors import DeviceNotAvailableError, InvalidInputError, NasError
from nas.search.store import TrialStore, sqlite_url

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster():
    """One local Ray with two workers for all tests here."""
    import ray

    from nas.search.tune_engine import ray_arguments

    arguments = ray_arguments(None, 1)
    here = str(Path(__file__).parent)
    arguments["runtime_env"]["env_vars"]["PYTHONPATH"] += os.pathsep + here
    ray.init(num_cpus=2, **arguments)
    yield
    ray.shutdown()


def run_on_ray(problem, store, **arguments):
    from nas.search.tune_engine import run_on_ray

    return run_on_ray(problem, store, **arguments)


@pytest.mark.usefixtures("cluster")
class TestTune(EngineConformance):
    def run(self, problem, store, **arguments):
        """With two workers where much is to be done; one starts sooner."""
        num_workers = 2 if arguments["num_evaluations"] >= SPACE.size else 1
        return run_on_ray(problem, store, **{"num_workers": num_workers, **arguments})

    def test_a_worker_that_dies_once_evaluates_again(self, store, tmp_path):
        make = MakeMortal(tmp_path / "died", times=1)
        assert self.search(problem(make=make), store, num_evaluations=8) == "done"
        records = store.records()
        assert [type(record) for record in records] == [Trial] * 8
        assert len({record.key for record in records}) == 8

    @pytest.mark.slow
    def test_an_architecture_that_kills_workers_is_given_up(self, store, tmp_path):
        make = MakeMortal(tmp_path / "died", times=99)
        assert self.search(problem(make=make), store, num_evaluations=SPACE.size) == "done"
        (failed,) = [record for record in store.records() if isinstance(record, FailedTrial)]
        assert failed.architecture == SPACE.largest()
        assert failed.stage == "worker"
        assert "died 2 times" in failed.reason
        assert len({record.key for record in store.records()}) == SPACE.size

    def test_an_evaluator_that_cannot_be_built_ends_the_search(self, store):
        with pytest.raises(NasError, match="could not build its evaluator: FileNotFoundError"):
            self.search(problem(make=MakeNothing()), store)
        assert store.records() == []

    @pytest.mark.slow
    def test_workers_that_die_before_they_work_end_the_search(self, store):
        with pytest.raises(NasError, match="3 workers died while they built their evaluator"):
            self.search(problem(make=MakeDeath()), store)
        assert store.records() == []

    def test_more_workers_than_cores(self, store):
        with pytest.raises(DeviceNotAvailableError, match="has 2 cores, too few for 7 workers"):
            self.search(problem(), store, num_workers=7)


class MakeMortal:
    """An evaluator that kills its process over the largest architecture, a number of times."""

    def __init__(self, mark: Path, times: int) -> None:
        self.mark, self.times = mark, times

    def __call__(self):
        return self.judge

    def judge(self, architecture):
        if architecture == SPACE.largest():
            died = len(self.mark.read_text()) if self.mark.exists() else 0
            if died < self.times:
                self.mark.write_text("x" * (died + 1))
                os.kill(os.getpid(), signal.SIGKILL)
        return quality(architecture)


class MakeDeath:
    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


class MakeNothing:
    def __call__(self):
        raise FileNotFoundError("no supernet here")


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("localhost:1", DeviceNotAvailableError, "no Ray cluster answers at 'localhost:1'"),
        ("ray://127.0.0.1:1", DeviceNotAvailableError, "no Ray cluster answers"),
        ("nowhere", InvalidInputError, "must be host:port"),
        ("host:port", InvalidInputError, "must be host:port"),
    ],
)
def test_addresses_where_no_cluster_is(tmp_path, address, error, text):
    import ray

    ray.shutdown()  # runs after the tests above; a joined cluster would be used whatever the address
    with (
        TrialStore.create(sqlite_url(tmp_path / "study.db"), "search", {}) as store,
        pytest.raises(error, match=text),
    ):
        run_on_ray(problem(), store, sampler="tpe", seed=0, num_evaluations=3, address=address)
    assert not ray.is_initialized()
