"""Which engine is taken, and what is said where a GPU is required and there is none to use."""

import sys
from types import SimpleNamespace

import pytest

from job import StageError
from train import stage
from train.gpu import device
from train.gpu.device import Found

GOOD = Found(driver=12040, needed=12080, devices=1, name="Tesla T4")


def test_a_gpu_that_works_is_taken():
    for required in (False, True):
        choice = device.choose_from(GOOD, required)
        assert choice.gpu and choice.reason == "Tesla T4 is there"


@pytest.mark.parametrize(
    ("found", "what", "to_do"),
    [
        (Found(missing="gsplat"), "gsplat is not installed", "spaceport[gpu]"),
        (Found(needed=12080), "no NVIDIA driver", "instance type with an NVIDIA GPU"),
        (Found(driver=11040, needed=12080), "too old: it is for CUDA 11.4, and torch needs 12.8", "newer driver"),
        (Found(driver=12080, needed=12080, status=100), "sees no GPU", "--gpus all"),
        (Found(driver=12080, needed=12080), "sees no GPU", "--gpus all"),
        (Found(driver=12080, needed=12080, status=803), "does not start (error 803)", "Restart"),
        (
            Found("", 12080, 12080, 0, 1, "Tesla V100", "CUDA error: no kernel image is available for execution"),
            "Tesla V100 is not of a kind that this image has code for (sm_75, sm_80, sm_86, sm_89, sm_90)",
            "T4",
        ),
        (
            Found("", 12080, 12080, 0, 1, "NVIDIA L4", "CUDA error: unspecified launch failure"),
            "launch failure",
            "again",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(found, what, to_do):
    choice = device.choose_from(found, required=False)
    assert not choice.gpu and what in choice.reason
    with pytest.raises(StageError) as caught:
        device.choose_from(found, required=True)
    assert caught.value.code == "NO_GPU"
    assert what in str(caught.value) and to_do in str(caught.value)


class Driver:
    """The three functions of libcuda that are asked."""

    def __init__(self, version, status, devices):
        self.version, self.status, self.devices = version, status, devices

    def cuDriverGetVersion(self, number):
        number._obj.value = self.version
        return 0

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, number):
        number._obj.value = self.devices
        return 0


def test_the_driver_is_asked():
    def missing(name):
        raise OSError(name)

    assert device.ask_driver(missing) == Found()
    assert device.ask_driver(lambda name: Driver(12040, 0, 2)) == Found(driver=12040, devices=2)
    assert device.ask_driver(lambda name: Driver(12040, 100, 0)) == Found(driver=12040, status=100)


def test_the_environment_requires_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "look", lambda: Found(missing="torch"))
    monkeypatch.delenv(device.REQUIRED, raising=False)
    assert device.choose() == device.Choice(False, "torch is not installed")
    monkeypatch.setenv(device.REQUIRED, "1")
    with pytest.raises(StageError, match="This image trains on a GPU, and torch is not installed"):
        device.choose()


def test_a_stage_that_needs_a_gpu_fails_before_it_reads_anything(monkeypatch):
    monkeypatch.setattr(device, "look", lambda: Found(driver=12080, needed=12080, status=100))
    monkeypatch.setenv(device.REQUIRED, "1")
    with pytest.raises(StageError) as caught:
        stage.run(SimpleNamespace(options={}))
    assert caught.value.code == "NO_GPU"


@pytest.mark.parametrize(("seen", "most", "wanted"), [(1, None, 1), (4, None, 4), (4, 2, 2), (2, 8, 2), (8, 1, 1)])
def test_all_gpus_are_taken_but_not_more_than_asked_for(monkeypatch, seen, most, wanted):
    free = [(9 << 30, 16 << 30), (12 << 30, 14 << 30), *[(13 << 30, 16 << 30)] * 6]
    cuda = SimpleNamespace(device_count=lambda: seen, mem_get_info=lambda gpu: free[gpu])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert device.count(most) == wanted
    found = device.free_memory(wanted)
    assert (found.device_bytes, found.total_bytes) == (9 << 30, (14 if wanted > 1 else 16) << 30)
