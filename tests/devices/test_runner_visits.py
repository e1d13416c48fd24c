"""How the runner shares its time out among candidates: a few are loaded together, and each is come back to."""

from itertools import groupby
from pathlib import Path

import pytest

from nas.devices import runner

JOB = {"threads": 1, "seconds_each": 1.0}


class Fake:
    """A model that takes no time and writes down when it ran; ``broken`` cannot be loaded, ``failing`` cannot run."""

    burst, run_s = 2, 0.004
    ran: list[str] = []  # noqa: RUF012 - emptied by the fixture, as is the next
    loaded: list[str] = []  # noqa: RUF012

    def __init__(self, path, job=None, burst=None):
        self.name = path.stem
        if self.name == "broken":
            raise ValueError("no such operator")
        self.load()

    def load(self):
        self.loaded.append(self.name)

    def unload(self):
        self.loaded.remove(self.name)

    def time(self, num_runs):
        if self.name == "failing":
            raise RuntimeError("out of memory")
        assert self.name in ("anchor", *self.loaded)
        self.ran.append(self.name)
        return [self.run_s] * num_runs


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(runner, "Model", Fake)
    monkeypatch.setattr(Fake, "ran", [])
    monkeypatch.setattr(Fake, "loaded", [])


def timed(*names):
    entries = [{"name": name, "file": f"{name}.onnx"} for name in names]
    return runner._timed(Fake(Path("anchor")), entries, JOB, Path(), lambda: False)


def test_every_candidate_is_come_back_to_with_the_others_in_between():
    events = timed("a", "b", "c")
    visits = [name for name, _ in groupby(name for name in Fake.ran if name != "anchor")]
    assert visits == ["a", "b", "c"] * runner.NUM_VISITS
    assert Fake.loaded == ["anchor"]  # one candidate in memory at a time
    assert [event["name"] for event in events] == ["a", "b", "c"]
    for event in events:
        assert event["num_rounds"] == round(1.0 / (2 * 3 * Fake.run_s))  # a second of both models' bursts
        assert len(event["samples_s"]) == len(event["anchor_samples_s"]) == event["num_rounds"] * Fake.burst


def test_one_that_cannot_run_does_not_keep_the_others_from_it():
    events = {event["name"]: event for event in timed("a", "broken", "failing", "b")}
    assert events["broken"]["message"] == "ValueError: no such operator"
    assert events["failing"]["message"] == "RuntimeError: out of memory"
    assert {name for name, event in events.items() if event["event"] == "result"} == {"a", "b"}


def test_a_sender_that_is_gone_ends_it_at_once():
    with pytest.raises(runner.OrphanedError):
        runner._timed(Fake(Path("anchor")), [{"name": "a", "file": "a.onnx"}], JOB, Path(), lambda: True)
    assert Fake.ran == []


@pytest.mark.parametrize(
    ("seconds_each", "run_s", "expected"),
    [
        (1.0, 0.004, [16, 4]),
        (9.0, 0.004, [3] * 6 + [2]),
        (600.0, 0.004, [1] * 20),
        (1.0, 1.0, [1] * 20),  # a slow board: its least rounds alone take 48 s
    ],
)
def test_results_come_after_half_a_minute_or_one_by_one(monkeypatch, seconds_each, run_s, expected):
    monkeypatch.setattr(Fake, "run_s", run_s)
    monkeypatch.setattr(runner, "pin", lambda job: None)
    together, timed_ = [], runner._timed
    monkeypatch.setattr(runner, "_timed", lambda *rest: together.append(timed_(*rest)) or together[-1])
    names = [str(number) for number in range(20)]
    job = {**JOB, "runtime": "onnxruntime", "anchor": "anchor.onnx", "seconds_each": seconds_each}
    job["candidates"] = [{"name": name, "file": f"{name}.onnx"} for name in names]
    answered = []
    runner.run(job, Path(), answered.append, lambda: False)
    assert [len(events) for events in together] == expected
    assert [event["name"] for event in answered if event["event"] == "result"] == names
