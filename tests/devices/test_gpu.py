"""What nvidia-smi says, read and judged; a stand-in for the tool is no device, and is refused as one.

The tests marked ``gpu`` measure on a real one.
"""

import json
import os
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from nas.devices import gpu as gpu_module
from nas.devices.clock import Job
from nas.devices.gpu import Gpu, NvidiaSmiError, Watch, check_free, gpu_target, known_gpus, match, throttle_reasons
from nas.devices.target import Settings, Shape
from nas.devices.torch_workload import run_program
from nas.errors import DeviceNotAvailableError, InvalidInputError
from search_spaces.architecture import Architecture, TextSpec

A100 = "GPU-5a1f8c6e-0b7d-4c55-9a55-2f1e3c9a7b10"
T4 = "GPU-c0ffee00-1111-2222-3333-444455556666"
TORCH = Settings(runtime="torch")
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")

#: Answers with the tool's own words, for the fields and processes that ``state.json`` beside it holds.
FAKE_SMI = """
import json, pathlib, sys, time
state = json.loads(pathlib.Path(__file__).with_name("state.json").read_text())
options = dict(argument.split("=", 1) for argument in sys.argv[1:])
assert options.pop("--format").startswith("csv,noheader")
if "say" in state:
    print(state["say"])
    raise SystemExit(state["status"])
time.sleep(state.get("sleep", 0))
gpus = [gpu for gpu in state["gpus"] if options.get("--id") in (None, gpu["uuid"])]
if not gpus:
    print("No devices were found")
    raise SystemExit(6)
if "--query-compute-apps" in options:
    rows = [[app[field] for field in options["--query-compute-apps"].split(",")] for app in gpus[0]["apps"]]
else:
    fields = options["--query-gpu"].split(",")
    for field in fields:
        if field not in gpus[0]:
            print(f'Field "{field}" is not a valid field to query.')
            print()
            raise SystemExit(2)
    rows = [[gpu[field] for field in fields] for gpu in gpus]
while True:
    for row in rows:
        print(", ".join(map(str, row)), flush=True)
    if "--loop-ms" not in options:
        break
    time.sleep(int(options["--loop-ms"]) / 1000)
"""


def listed(index, name, uuid, **fields):
    return {
        "index": index,
        "name": name,
        "uuid": uuid,
        "driver_version": "550.54.15",
        "clocks.max.sm": "1410",
        "power.limit": "400.00",
        "utilization.gpu": "0",
        "clocks_event_reasons.active": "0x0000000000000001",
        "apps": [],
        **fields,
    }


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a stand-in for nvidia-smi on PATH; ``smi(gpu, ...)`` sets what it says from now on."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable} -SI\n{FAKE_SMI}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def says(*gpus, **state):
        (tmp_path / "state.json").write_text(json.dumps({"gpus": gpus, **state}))

    return says


@pytest.fixture
def two_gpus(smi):
    smi(listed(0, "NVIDIA A100-SXM4-40GB", A100), listed(1, "Tesla T4", T4))
    return known_gpus()


def test_gpus_are_read_in_the_tools_order(two_gpus):
    assert two_gpus == [
        Gpu(0, "NVIDIA A100-SXM4-40GB", A100, "550.54.15"),
        Gpu(1, "Tesla T4", T4, "550.54.15"),
    ]


def test_without_the_tool_or_a_driver_there_is_no_gpu(smi, tmp_path, monkeypatch):
    smi()
    assert known_gpus() == []
    smi(say="NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", status=9)
    assert known_gpus() == []
    monkeypatch.setattr(gpu_module, "SMI_TIMEOUT_S", 0.2)
    smi(listed(0, "Tesla T4", T4), sleep=30)
    assert known_gpus() == []
    (tmp_path / "nvidia-smi").unlink()
    assert known_gpus() == []


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA A100-SXM4-40GB"]),
        (T4[:12], ["Tesla T4"]),
        ("1, 7, 0", ["Tesla T4"]),
        ("", []),
        ("-1", []),
    ],
)
def test_a_gpu_that_this_process_must_not_see_is_not_known(two_gpus, monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = known_gpus()
    assert [gpu.name for gpu in gpus] == names
    assert [gpu.index for gpu in gpus] == list(range(len(names)))


@pytest.mark.parametrize(
    ("name", "gpu_name"),
    [
        ("a100", "NVIDIA A100-SXM4-40GB"),
        ("A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("a10", "NVIDIA A10"),
        ("a10g", "NVIDIA A10G"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("h100", "NVIDIA H100 PCIe"),
        ("h100-pcie", "NVIDIA H100 PCIe"),
        ("h200", "NVIDIA H200"),
        ("gh200", "NVIDIA GH200 480GB"),
        ("t4", "Tesla T4"),
        ("l4", "NVIDIA L4"),
        ("l40s", "NVIDIA L40S"),
        ("v100", "Tesla V100-SXM2-16GB"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("rtx4070ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("a6000", "NVIDIA RTX A6000"),
    ],
)
def test_a_model_is_a_name(name, gpu_name):
    gpu = Gpu(0, gpu_name)
    assert match(name, [Gpu(1, "NVIDIA K80"), gpu]) == gpu


@pytest.mark.parametrize(
    ("name", "gpu_name"),
    [
        ("a10", "NVIDIA A100-SXM4-40GB"),
        ("a10", "NVIDIA A10G"),
        ("h200", "NVIDIA GH200 480GB"),
        ("l4", "NVIDIA L40S"),
        ("100", "NVIDIA A100-SXM4-40GB"),
        ("40gb", "NVIDIA A100-SXM4-40GB"),
        ("sxm4", "NVIDIA A100-SXM4-40GB"),
        ("nvidia", "NVIDIA A100-SXM4-40GB"),
        ("rtx4070", "NVIDIA GeForce RTX 4070 Ti"),
        ("rtx4070ti", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("rtx4090", "NVIDIA GeForce RTX 4090 Laptop GPU"),
        ("rtx6000", "NVIDIA RTX 6000 Ada Generation"),
        ("", "NVIDIA A100-SXM4-40GB"),
        ("cuda:a100", "NVIDIA A100-SXM4-40GB"),
        ("cuda:1", "NVIDIA A100-SXM4-40GB"),
        ("cuda:-1", "NVIDIA A100-SXM4-40GB"),
    ],
)
def test_a_name_never_means_another_gpu(name, gpu_name):
    assert match(name, [Gpu(0, gpu_name)]) is None


def test_numbers_are_names(two_gpus):
    assert [match(name, two_gpus).index for name in ("cuda", "CUDA:0", "cuda:1", "t4")] == [0, 0, 1, 1]
    twins = [Gpu(0, "NVIDIA H100 PCIe"), Gpu(1, "NVIDIA H100 PCIe")]
    assert match("h100", twins) == twins[0]
    with pytest.raises(DeviceNotAvailableError, match=r"'h100' may be cuda:0 \(NVIDIA H100 PCIe\) or cuda:1 .*number"):
        match("h100", [twins[0], Gpu(1, "NVIDIA H100 80GB HBM3")])


def test_a_gpu_in_use_is_refused(smi):
    gpu = Gpu(0, "Tesla T4", T4)
    own = {"pid": os.getpid(), "process_name": "python"}
    smi(listed(0, "Tesla T4", T4, apps=[own]))
    check_free(gpu)
    smi(listed(0, "Tesla T4", T4, apps=[own, {"pid": 4321, "process_name": "/opt/a, b/python3"}]))
    with pytest.raises(
        DeviceNotAvailableError, match=r"cuda:0 \(Tesla T4\) is busy: process 4321 \(/opt/a, b/python3\)"
    ):
        check_free(gpu)
    smi(listed(0, "Tesla T4", T4, apps=[{"pid": 77, "process_name": "[Not Found]"}]))
    with pytest.raises(DeviceNotAvailableError, match=r"process 77 \(\[Not Found\]\)"):
        check_free(gpu)
    smi(say="Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.", status=15)
    with pytest.raises(DeviceNotAvailableError, match=r"nvidia-smi says: Unable .* GPU is lost"):
        check_free(gpu)


def test_use_by_what_is_not_seen_is_refused_once_it_lasts(smi, monkeypatch):
    slept = []
    monkeypatch.setattr(gpu_module, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    gpu = Gpu(0, "Tesla T4", T4)
    smi(listed(0, "Tesla T4", T4, **{"utilization.gpu": "97"}))
    with pytest.raises(DeviceNotAvailableError, match="not seen from here uses it 97 % of the time"):
        check_free(gpu)
    assert sum(slept) == 3
    for calm in ("3", "[N/A]"):
        smi(listed(0, "Tesla T4", T4, **{"utilization.gpu": calm}))
        check_free(gpu)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("0x0000000000000000", ()),
        ("0x0000000000000001", ()),  # idle
        ("0x0000000000000012", ()),  # clocks that someone set
        ("0x0000000000000004", ("power cap",)),
        ("0x0000000000000060", ("too hot",)),
        ("0x00000000000000C8", ("hardware slowdown", "power brake", "too hot")),
        ("[N/A]", ()),
        ("[Not Supported]", ()),
    ],
)
def test_reasons_for_lower_clocks_are_words(mask, words):
    assert throttle_reasons(mask) == words


def test_a_watch_keeps_what_it_saw(smi):
    smi(listed(0, "Tesla T4", T4, **{"clocks_event_reasons.active": "0x0000000000000004"}))
    watch = Watch(T4)
    try:
        deadline = time.monotonic() + 20
        while not os.fstat(watch._lines.fileno()).st_size and time.monotonic() < deadline:
            time.sleep(0.05)
        smi(listed(0, "Tesla T4", T4))
        assert watch.take() == ["power cap"]
    finally:
        watch.close()
    assert watch._process.returncode is not None


def test_an_older_driver_is_understood(smi):
    old = listed(0, "Tesla T4", T4, **{"clocks_throttle_reasons.active": "0x0000000000000020"})
    del old["clocks_event_reasons.active"]
    smi(old)
    watch = Watch(T4)
    assert watch.take() == ["too hot"]
    watch.close()


def test_who_comes_while_it_is_measured_is_found(smi):
    runner, stranger = ({"pid": pid, "process_name": "python3"} for pid in (100, 200))
    smi(listed(0, "Tesla T4", T4))
    watch = Watch(T4, newcomers=1)
    smi(listed(0, "Tesla T4", T4, apps=[runner]))
    assert watch.take() == []
    smi(listed(0, "Tesla T4", T4, apps=[runner, stranger]))
    with pytest.raises(DeviceNotAvailableError, match=r"200 \(python3\)"):
        watch.take()
    watch.close()


@NO_CUDA
@pytest.mark.parametrize("runtime", ["torch", "torch-graphs", "onnxruntime"])
def test_what_nvidia_smi_lists_is_no_device_without_cuda(two_gpus, runtime):
    with pytest.raises(
        DeviceNotAvailableError, match=r"cuda:1 \(Tesla T4\) cannot be measured: (torch|onnxruntime) \d"
    ):
        gpu_target("t4", Settings(runtime=runtime))


def test_a_gpu_that_is_not_here_is_refused(smi):
    smi(listed(0, "NVIDIA A100-SXM4-40GB", A100))
    for name in ("h100", "cuda:1", "a10"):
        with pytest.raises(
            DeviceNotAvailableError, match=rf"no GPU '{name}' .* lists cuda:0 \(NVIDIA A100-SXM4-40GB\)"
        ):
            gpu_target(name, TORCH)
    smi()
    with pytest.raises(DeviceNotAvailableError, match="nvidia-smi lists none"):
        gpu_target("cuda", TORCH)


def test_openvino_is_not_for_nvidia(two_gpus):
    with pytest.raises(InvalidInputError, match="--runtime torch, torch-graphs or onnxruntime"):
        gpu_target("a100", Settings(runtime="openvino"))


def test_the_runner_sees_its_gpu_alone():
    say = "import json; print(json.dumps({'event': 'ready', 'uuid': os.environ['CUDA_VISIBLE_DEVICES']}))"
    done = """; print('{"event": "done"}')"""
    (event,) = run_program(Job({"seconds_each": 1.0}), gpu_module._alone(Gpu(1, "Tesla T4", T4), say + done))
    assert event["uuid"] == T4


def test_onnxruntimes_answers_get_what_only_nvidia_smi_knows(smi, monkeypatch):
    smi(listed(0, "Tesla T4", T4, **{"clocks_event_reasons.active": "0x0000000000000004"}))
    jobs = []

    def answer(job, program):
        jobs.append(job)
        yield {"event": "ready", "facts": {"runtime": "onnxruntime 1.20.0", "accelerator": "none"}}
        yield {"event": "result", "name": "a", "throttled": ["too hot"], "energy_j": 7.0}

    monkeypatch.setattr(gpu_module, "run_program", answer)
    run = gpu_module._onnxruntime_on(Gpu(0, "Tesla T4", T4))
    ready, result = run(Job({"candidates": [{"name": "a", "memory": True}]}))
    assert ready["facts"]["accelerator"] == "Tesla T4, driver 550.54.15, up to 1410 MHz and 400.00 W"
    assert result["throttled"] == ["too hot", "power cap"]
    assert result["energy_j"] is None  # the processor's, not the GPU's
    assert jobs[0].header["candidates"] == [{"name": "a", "memory": False}]


def test_a_tool_that_answers_something_else_is_told(smi):
    smi(listed(0, "Tesla, T4", T4))
    with pytest.raises(NvidiaSmiError, match="nvidia-smi says of"):
        gpu_module.accelerator(T4)


# --- a real GPU


@pytest.fixture(scope="module")
def shapes():
    return {str(layers): Shape(Architecture.bert(layers, 256, 1024, 4), TextSpec()) for layers in (2, 12)}


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["torch", "torch-graphs"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_real_gpu_measures(shapes, runtime, precision):
    target = gpu_target("cuda", Settings(runtime=runtime, precision=precision, batch_size=8))
    latencies = target.measure(shapes, seconds_each=1.0)
    assert latencies["12"].ratio > 2 * latencies["2"].ratio
    assert known_gpus()[0].name in target.description
    assert target.conditions.device == "cuda:0"
    assert all(latency.peak_memory_bytes > 0 for latency in latencies.values())


@pytest.mark.gpu
def test_a_graph_spares_a_small_model_the_launching(shapes):
    eager, graphs = (
        gpu_target("cuda", Settings(runtime=runtime)).measure(shapes)["12"] for runtime in ("torch", "torch-graphs")
    )
    assert graphs.p50_s < eager.p50_s


@pytest.mark.gpu
def test_a_graph_computes_what_the_module_computes(shapes, tmp_path):
    from nas.devices.torch_runner import load, prepare
    from nas.devices.torch_workload import TorchWorkload

    packed = TorchWorkload().pack(shapes, TORCH)
    path = tmp_path / packed.candidates["2"]
    path.write_bytes(packed.files[path.name])
    job = {"device": "cuda:0", "runtime": "torch-graphs", "batch_size": 2, "seq_len": 32}
    torch.manual_seed(0)
    replayed = prepare(path, job)().last_hidden_state
    torch.manual_seed(0)
    module = load(path).to("cuda:0").eval()
    ids = torch.arange(32, device="cuda:0").remainder(8).expand(2, -1)
    with torch.inference_mode():
        torch.testing.assert_close(replayed, module(input_ids=ids).last_hidden_state, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
def test_a_real_gpu_in_use_by_another_process_is_refused():
    import subprocess

    program = "import torch, sys; torch.zeros(1, device='cuda:0'); torch.cuda.synchronize(); print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        if not gpu_module.processes_on(known_gpus()[0].uuid):
            pytest.skip("this driver does not list processes here")
        with pytest.raises(DeviceNotAvailableError, match="is busy: process"):
            gpu_target("cuda", TORCH)
    finally:
        other.kill()
        other.wait()


@pytest.mark.gpu
def test_two_of_four_computes_on_a_gpu_what_the_dense_model_computes(tmp_path):
    from nas.devices.torch_runner import compress_pairs, load
    from nas.devices.torch_workload import TorchWorkload

    shapes = {"it": Shape(Architecture.bert(2, 256, 512, 8), TextSpec())}
    packed = TorchWorkload().pack(shapes, Settings(runtime="torch-sparse", precision="fp16"))
    path = tmp_path / packed.candidates["it"]
    path.write_bytes(packed.files[path.name])
    torch.manual_seed(0)
    model = load(path).to("cuda:0").eval()
    with torch.inference_mode():
        for linear in (child for child in model.encoder.modules() if isinstance(child, torch.nn.Linear)):
            linear.weight[:, ::4] = linear.weight[:, 1::4] = 0
        ids = torch.arange(40, device="cuda:0").remainder(8).expand(2, -1)
        dense = model(input_ids=ids).last_hidden_state
        assert compress_pairs(model.encoder) == 12
        torch.testing.assert_close(model(input_ids=ids).last_hidden_state, dense, atol=2e-2, rtol=2e-2)
