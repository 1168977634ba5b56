"""What several files of tests are given: a small scene, and the GPU's kernels on the CPU."""

import shutil

import pytest

from tests.containers.cuda_on_cpu import Arrays, compile_for_cpu
from tests.containers.training_runs import write_scene
from train.gpu import launches


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene") / "sfm"
    write_scene(folder)
    return folder


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to run the kernels on the CPU with")
    return compile_for_cpu(launches.SOURCES, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=[False, True], ids=["rising", "falling"])
def ordered(kernels, request):
    """The kernels with threads in this order between barriers."""
    for kernel in kernels.values():
        kernel.falling = request.param
    return kernels


@pytest.fixture
def arrays():
    made = Arrays()
    yield made
    made.check()
