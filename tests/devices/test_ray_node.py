"""A Ray node as a target: its name and choice without a cluster, the rest on a real one with two raylets."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from nas.devices import ray_bridge
from nas.devices.clock import RUNNER, Job
from nas.devices.ray_bridge import Keeper, RefusalError, choose
from nas.devices.ray_node import RayNode, ray_target, run_on_node
from nas.devices.target import Settings, Shape
from nas.errors import DeviceNotAvailableError, InconclusiveMeasurementError, InvalidInputError
from search_spaces.architecture import Architecture, TextSpec

# --- without a cluster


@pytest.mark.parametrize("address", ["auto", "head:6379", "ray://10.0.0.1:10001", "[::1]:6379", "ray://a-b.example:1"])
def test_addresses_of_clusters(address):
    assert RayNode(address, resource="board").address == address


@pytest.mark.parametrize("address", ["", "head", "head:", "head:0", "head:65536", "http://head:1", "a b:1", "-:1\n"])
def test_what_is_no_address(address):
    with pytest.raises(InvalidInputError, match=r"must be host:port, ray://host:port or auto"):
        RayNode(address, resource="board")


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({}, "give one of them"),
        ({"accelerator_type": "A100", "resource": "board"}, "give one of them"),
        ({"resource": "CPU"}, "every node has CPU"),
        ({"resource": "board\n"}, "must be a name"),
        ({"accelerator_type": "A" * 101}, "must be a name"),
        ({"resource": "accelerator_type:A100"}, "give 'A100' as accelerator_type"),
    ],
)
def test_a_node_is_chosen_by_one_thing_that_tells_it_from_others(choice, text):
    with pytest.raises(InvalidInputError, match=text):
        RayNode("auto", **choice)


def node(name, address="10.0.0.1", alive=True, **resources):
    return {"NodeID": name, "NodeManagerAddress": address, "Alive": alive, "Resources": {"memory": 9e9, **resources}}


def test_a_node_is_taken_whole():
    nodes = [node("a", CPU=8.0), node("b", CPU=4.0, GPU=2.0, **{"accelerator_type:A100": 1.0, "board": 3.0})]
    assert choose(nodes, "accelerator_type:A100").amounts == {"CPU": 4.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
    seat = choose(nodes, "board")
    assert (seat.node_id, seat.amounts) == ("b", {"CPU": 4.0, "GPU": 2.0, "board": 3.0})


def test_of_several_nodes_it_is_always_the_same():
    nodes = [node("c", "10.0.0.3", board=1.0), node("b", "10.0.0.2", board=1.0), node("a", "10.0.0.9", board=1.0)]
    assert {choose(order, "board").node_id for order in (nodes, nodes[::-1])} == {"b"}


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("accelerator_type:a100", "offers accelerator type a100. Did you mean accelerator type A100? Its 2 nodes"),
        ("boardd", "offers resource boardd. Did you mean resource board? Its 2 nodes"),
        ("quantum", "offers resource quantum. Its 2 nodes"),
        ("dead", "offers resource dead. Its 2 nodes"),
    ],
)
def test_a_name_that_no_node_offers(asked, nearest):
    nodes = [
        node("a", CPU=8.0, **{"node:10.0.0.1": 1.0}),
        node("b", board=1.0, **{"accelerator_type:A100": 1.0}),
        node("c", alive=False, dead=1.0),
    ]
    with pytest.raises(RefusalError) as refusal:
        choose(nodes, asked)
    assert nearest in str(refusal.value)
    assert str(refusal.value).endswith("offer: accelerator type A100, resource board")


def test_a_door_that_nobody_opens():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DeviceNotAvailableError, match=f"no Ray cluster answers at '{address}'"):
            ray_target("board", RayNode(address, resource="board"), Settings())


def test_the_runner_is_kept_and_its_end_is_told(tiny_models):
    whole = job(tiny_models)
    keeper, said, end = Keeper(), b"", None
    keeper.start(RUNNER.read_text(), b"".join(whole.chunks(heartbeat_s=30.0)), {})
    while end is None:
        part, end = keeper.poll(30.0)
        said += part
    assert [json.loads(line)["event"] for line in said.splitlines()] == ["ready", "result", "result", "done"]
    assert end == "it ended with exit status 0"


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import os; os.kill(os.getpid(), 9)", "it was killed by signal 9"),
        ("raise SystemExit('enough')", "it ended with exit status 1; its last words: enough"),
    ],
)
def test_a_runner_that_ends_early(program, text):
    keeper = Keeper()
    keeper.start(program, bytes(1 << 20), {})
    assert keeper.poll(30.0) == (b"", text)


def test_an_accelerator_is_not_timed_by_what_runs_on_processors():
    with pytest.raises(InvalidInputError, match="timed in torch or torch-graphs or torch-sparse, got onnxruntime"):
        ray_target("a100", RayNode("auto", accelerator_type="A100"), Settings())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_door_behind_which_is_no_cluster(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        started_s = time.monotonic()
        with pytest.raises(DeviceNotAvailableError, match="no Ray cluster"):
            next(run_on_node(RayNode(address, resource="board"), Job(PROBE)))
    assert time.monotonic() - started_s < 3 * ray_bridge.JOIN_S


# --- on a cluster

PROBE = {
    "protocol": 2,
    "runtime": "onnxruntime",
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "cpus": None,
    "batch_size": 1,
    "seq_len": 16,
    "seconds_each": 0.1,
    "anchor": None,
    "anchor_burst": None,
    "candidates": [],
    "fill": {},
}


@pytest.fixture(scope="module")
def cluster():
    """A head, and a node that offers a board and says that it has an accelerator."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.board = cluster.add_node(num_cpus=1, resources={"board": 1, "accelerator_type:T4": 1})
    yield cluster
    cluster.shutdown()


def job(models, **changes):
    """Times each model beside the first."""
    candidates = [{"name": name, "file": name, "burst": None} for name in models]
    return Job({**PROBE, "anchor": next(iter(models)), "candidates": candidates, **changes}, models)


def runners():
    """Runners that run from their source, as those that were sent somewhere do."""
    source = RUNNER.read_bytes()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if source in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.ray
@pytest.mark.slow
def test_models_are_timed_on_the_node_that_was_asked_for(cluster, tiny_models):
    ready, *results = run_on_node(RayNode(cluster.address, resource="board"), job(tiny_models))
    assert ready["node"]["id"] == cluster.board.node_id
    assert [(event["event"], event["name"]) for event in results] == [("result", "small"), ("result", "large")]
    assert all(time_s > 0 for event in results for time_s in event["samples_s"] + event["anchor_samples_s"])
    assert wait_until(lambda: not runners())


@pytest.mark.ray
@pytest.mark.slow
def test_what_no_node_offers_is_said_at_once(cluster):
    with pytest.raises(DeviceNotAvailableError, match=r"Did you mean resource board\?.* accelerator type T4"):
        next(run_on_node(RayNode(cluster.address, resource="borad"), Job(PROBE)))


@pytest.mark.ray
@pytest.mark.slow
def test_the_session_of_a_target(cluster, tiny_models):
    target = ray_target("board", RayNode(cluster.address, resource="board"), Settings(seq_len=16))
    assert target.conditions.device == "board"
    latencies = target.measure(tiny_models, seconds_each=0.1, attempts=1)
    assert list(latencies) == ["small", "large"]


@pytest.mark.ray
@pytest.mark.slow
def test_torch_where_this_package_is_installed(cluster):
    settings = Settings(runtime="torch", seq_len=16)
    target = ray_target("board", RayNode(cluster.address, resource="board"), settings)
    assert target.conditions.runtime.startswith("torch ")
    models = {"tiny": Shape(Architecture.bert(1, 32, 64, 2), TextSpec())}
    assert list(target.measure(models, seconds_each=0.1, attempts=1)) == ["tiny"]
    with pytest.raises(DeviceNotAvailableError, match=r"accelerator type T4 .* cannot be measured: torch"):
        ray_target("t4", RayNode(cluster.address, accelerator_type="T4"), settings)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_serves_one_at_a_time(cluster, tiny_models):
    board = RayNode(cluster.address, resource="board")
    with contextlib.closing(run_on_node(board, job(tiny_models, seconds_each=60.0))) as first:
        assert next(first)["event"] == "ready"
        with pytest.raises(DeviceNotAvailableError, match="was not free within 2 s"):
            next(run_on_node(RayNode(cluster.address, accelerator_type="T4"), Job(PROBE), wait_s=2.0))
        assert len(runners()) == 1
    assert wait_until(lambda: not runners())
    assert next(run_on_node(board, Job(PROBE)))["node"]["id"] == cluster.board.node_id


@pytest.mark.ray
@pytest.mark.slow
def test_a_package_that_the_node_lacks(cluster):
    with pytest.raises(DeviceNotAvailableError, match=r"on the Ray node .* lacks a package, .*'no_such_runtime'"):
        next(run_on_node(RayNode(cluster.address, resource="board"), Job({**PROBE, "runtime": "no_such_runtime"})))


@pytest.mark.ray
@pytest.mark.slow
def test_a_runner_that_is_killed(cluster, tiny_models):
    events = run_on_node(RayNode(cluster.address, resource="board"), job(tiny_models, seconds_each=60.0))
    assert next(events)["event"] == "ready"
    for pid in runners():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(InconclusiveMeasurementError, match=r"killed by signal 9; .*measured before is kept"):
        next(events)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_dies_takes_its_runner_along(cluster, tiny_models):
    doomed = cluster.add_node(num_cpus=1, resources={"doomed": 1})
    events = run_on_node(RayNode(cluster.address, resource="doomed"), job(tiny_models, seconds_each=2.0))
    assert [next(events)["event"] for _ in range(2)] == ["ready", "result"]
    doomed.kill_raylet()
    with pytest.raises(InconclusiveMeasurementError, match=r"the Ray node .* was lost"):
        next(events)
    assert wait_until(lambda: not runners())


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_loses_its_head(tiny_models, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # a minute unless told otherwise
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, resources={"board": 1})
        board = RayNode(cluster.address, resource="board")
        many = {f"{name} {number}": path for number in range(10) for name, path in tiny_models.items()}
        events = run_on_node(board, job(many, seconds_each=5.0))
        assert [next(events)["event"] for _ in range(2)] == ["ready", "result"]
        cluster.head_node.kill_gcs_server()
        with pytest.raises(InconclusiveMeasurementError, match=r"the cluster lost its head, .*; measure again"):
            list(events)
        assert wait_until(lambda: not runners())
        with pytest.raises(DeviceNotAvailableError, match="no Ray cluster answers"):
            next(run_on_node(board, Job(PROBE)))
    finally:
        cluster.shutdown()
