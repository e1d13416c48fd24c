"""A device's name means that device or an error; the fingerprint names what latencies depend on."""

import dataclasses

import pytest

from nas.devices.fingerprint import Fingerprint, available_cpus
from nas.devices.resolve import known_devices, resolve
from nas.errors import DeviceNotAvailableError, InvalidInputError


def test_cpu_is_this_machine():
    target = resolve("cpu", threads=1, batch_size=2, seq_len=64)
    conditions = target.conditions
    assert (conditions.device, conditions.threads, conditions.batch_size, conditions.seq_len) == ("cpu", 1, 2, 64)
    assert conditions.fingerprint == Fingerprint.of_this_machine().digest
    assert conditions.runtime.startswith("onnxruntime ")
    assert known_devices() == {"cpu": target.description}


@pytest.mark.parametrize("name", ["a100", "cuda", "cuda:0", "", "CPU2", "ssh://board", "../cpu"])
def test_another_name_is_never_this_machine(name):
    with pytest.raises(
        DeviceNotAvailableError, match=r"not available here.*Known devices: cpu .*--device cpu"
    ) as caught:
        resolve(name)
    assert caught.value.exit_code == 4


def test_the_nearest_name_is_suggested():
    with pytest.raises(DeviceNotAvailableError, match="Did you mean 'cpu'"):
        resolve("CPUs")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": len(available_cpus()) + 1}, "at most the .* cores"),
        ({"batch_size": -1}, "batch_size"),
        ({"seq_len": 10**9}, "seq_len"),
        ({"precision": "fp4"}, "precision must be one of fp32, int8"),
    ],
)
def test_conditions_are_checked(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        resolve("cpu", **settings)


def test_every_fact_changes_the_fingerprint():
    here = Fingerprint.of_this_machine()
    assert here == Fingerprint.of_this_machine()
    for field in dataclasses.fields(here):
        value = getattr(here, field.name)
        other = dataclasses.replace(here, **{field.name: value + 1 if isinstance(value, int) else value + "x"})
        assert other.digest != here.digest, field.name
