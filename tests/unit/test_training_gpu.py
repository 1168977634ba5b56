"""The benchmark of GPU training, driven with small trainings on the CPU: rows, comparison, tables, files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import gpus, training_floor, training_gpu, training_report, trainings
from benchmarks.training_gpu import ABLATION, NAME, Bench, Plan, ScoredTraining
from splat.model import read_ply
from tests.containers.training_runs import write_scene
from train import presets

TINY = replace(presets.CPU["draft"], long_side=48, max_gaussians=300, max_iterations=120, budget_s=1e9)
PLAN = Plan(
    rows={
        "plush": ScoredTraining("plush", TINY, (1, 2, 3)),
        "plush compensated": ScoredTraining("plush", replace(TINY, sh_degree=2), as_product=True),
        "caliterra": ScoredTraining("caliterra", TINY),
    },
    speed=ScoredTraining("plush", TINY),
    ablation=TINY,
    gpu=False,
)
BASELINE = {
    "loop_s": 240.0,
    "ssim_stand_in_s": 40.0,
    "iterations": 30_000,
    "psnr": 20.0,
    "psnr_median": 21.0,
    "psnr_fitted": 20.5,
    "ssim": 0.5,
    "gaussians": 400_000,
    "ply_bytes": 94_400_000,
}


@pytest.fixture(scope="module")
def sfm(tmp_path_factory):
    """Photos of two exposures, a factor of 1.5 apart."""
    folder = tmp_path_factory.mktemp("scene") / "plush-sfm"
    write_scene(folder, gains=[0.8 if i % 2 else 1.2 for i in range(24)])
    return folder


@pytest.fixture(scope="module")
def measured(sfm, tmp_path_factory):
    """A folder with everything, measured by two runs as after a cut-off job."""
    out = tmp_path_factory.mktemp("out")
    (out / "baseline-plush.json").write_text(json.dumps({"figures": BASELINE}))
    Bench({"plush": sfm}, out, PLAN).quality(["plush"])
    Bench({"plush": sfm}, out, PLAN).quality(["plush", "plush compensated", "speed", "sizes"], resume=True)
    return out


def test_rows_are_those_of_the_scenes_at_hand(sfm, tmp_path):
    assert Bench({"plush": sfm}, tmp_path, PLAN).quality_rows() == ["plush", "plush compensated", "speed", "sizes"]


def test_each_row_is_kept_with_the_models(measured):
    result = json.loads((measured / f"{NAME}.json").read_text())
    assert list(result["rows"]) == ["plush", "plush compensated", "speed", "sizes"]
    runs = result["rows"]["plush"]["runs"]
    assert [run["seed"] for run in runs] == [1, 2, 3]
    assert result["figures"]["plush_psnr"] == sorted(run["psnr"] for run in runs)[1]
    assert result["runs"] == runs and result["speed"] == result["rows"]["speed"]
    assert result["machine"] == result["rows"]["plush"]["device"] != ""
    for row in ("plush", "plush compensated"):
        model = measured / "ply" / f"{row.replace(' ', '-')}.ply"
        assert len(read_ply(model)) == result["rows"][row]["gaussians"]
        assert result["rows"]["sizes"]["files"][row]["ply_bytes"] == model.stat().st_size
        assert 0 < result["rows"]["sizes"]["files"][row]["sog_bytes"] < model.stat().st_size


def test_exposure_is_compensated_only_where_the_product_does_it(measured):
    rows = json.loads((measured / f"{NAME}.json").read_text())["rows"]
    assert rows["plush"]["psnr_raw"] == rows["plush"]["psnr"]
    assert 0.1 < rows["plush compensated"]["exposure_spread"] < np.log(1.5) / 2 + 0.01
    assert rows["plush compensated"]["psnr"] > rows["plush compensated"]["psnr_raw"] + 1


def test_ratios_against_the_baseline(measured):
    """By hand: a stand-in's time does not count for us; the baseline's file over ours."""
    result = json.loads((measured / f"{NAME}.json").read_text())
    figures, rows = result["figures"], result["rows"]
    assert figures["plush_time_ratio"] == pytest.approx((240 - 40) / rows["plush"]["seconds"], abs=0.01)
    assert figures["plush_psnr_gain"] == pytest.approx(rows["plush"]["psnr"] - 20, abs=1e-6)
    gain = rows["plush compensated"]["psnr_raw"] - 20
    assert figures["plush_compensated_psnr_gain"] == pytest.approx(gain, abs=1e-6)
    assert figures["plush_size_ratio_ply"] == pytest.approx(94_400_000 / rows["plush"]["ply_bytes"], abs=0.01)
    sog = rows["sizes"]["files"]["plush"]["sog_bytes"]
    assert figures["plush_size_ratio_sog"] == pytest.approx(94_400_000 / sog, abs=0.1)


def test_sizes_are_compared_where_nothing_is_lost():
    """plush: of two models that are better the smaller; the smallest has lost SSIM. caliterra has less to show."""
    row = {"seconds": 10.0, "psnr": 21.0, "psnr_raw": 21.0, "psnr_fitted": 21.0, "gaussians": 1, "runs": []}
    rows = {
        "plush": row | {"ssim": 0.6, "ply_bytes": 20_000_000},
        "plush 100k": row | {"ssim": 0.6, "ply_bytes": 10_000_000},
        "plush compensated": row | {"ssim": 0.4, "ply_bytes": 5_000_000},
        "caliterra": row | {"ssim": 0.6, "ply_bytes": 11_800_000},
    }
    files = {"plush 100k": {"sog_bytes": 1_000_000}, "caliterra": {"sog_bytes": 1_000_000}}
    rows["sizes"] = {"files": files}
    figures, _ = training_report.report(rows, {"plush": BASELINE, "caliterra": BASELINE})
    assert figures["size_ratio_ply"] == pytest.approx(94.4 / 11.8, abs=0.01)
    assert figures["size_ratio_sog"] == 94.4
    figures, _ = training_report.report(rows, {"plush": BASELINE})
    assert figures["size_ratio_ply"] == pytest.approx(94.4 / 10, abs=0.01)


def test_tables_say_what_is_met(measured):
    result = json.loads((measured / f"{NAME}.json").read_text())
    table = training_report.rows_table(result["rows"], {"plush": BASELINE})
    assert "| gsplat, plush | 240.0 | 30,000 | 400,000 | 20.00 | 21.00 | 20.00 | 20.50 | 0.5000 | 94.4 |  |" in table
    wanted = training_report.wanted_table({"plush_psnr": 27.59, "plush_train_s": 19.0})
    assert "| plush_psnr | >= 27.6 | 27.59 | no |" in wanted
    assert "| plush_train_s | <= 20 | 19 | yes |" in wanted
    assert "| size_ratio_ply | >= 5 | not measured |  |" in wanted


def test_ablation_is_kept_row_by_row(sfm, tmp_path):
    bench = Bench({"plush": sfm, "other": sfm}, tmp_path, PLAN)
    bench.ablation(["plain"])
    stamp = (tmp_path / f"{NAME}{ABLATION}.json").stat().st_mtime_ns
    bench.ablation(["plain"], resume=True)
    assert (tmp_path / f"{NAME}{ABLATION}.json").stat().st_mtime_ns == stamp  # nothing was measured again
    bench.ablation(["plain", "no SH bands"], resume=True)
    table = json.loads((tmp_path / f"{NAME}{ABLATION}.json").read_text())["figures"]
    assert list(table) == ["plush", "other"]
    for rows in table.values():
        assert list(rows) == ["plain", "no SH bands"]
        assert all(row["iterations"] == 120 and row["psnr"] > 10 for row in rows.values())
    assert table["plush"]["plain"]["psnr"] == table["other"]["plain"]["psnr"]
    del table["other"]["no SH bands"]
    header, _, plain, bands = training_report.ablation_table(table).splitlines()
    assert header.count("|") == plain.count("|") == bands.count("|") == 12
    assert plain.startswith(f"| plain | {table['plush']['plain']['psnr']:.2f} | ") and bands.endswith(
        " |  |  |  |  |  |"
    )


def test_sizes_of_models_trained_anew_are_forgotten():
    old = {"a": {}, "b": {}, "sizes": {"files": {"a": {"sog_bytes": 1}, "b": {"sog_bytes": 2}}, "date": "then"}}
    new = {"b": {}, "c": {}, "sizes": {"files": {"c": {"sog_bytes": 3}}, "date": "now"}}
    files = {"a": {"sog_bytes": 1}, "c": {"sog_bytes": 3}}
    assert training_gpu.sizes_of([old, new]) == {"sizes": {"files": files, "date": "now"}}
    assert training_gpu.sizes_of([{"a": {}}]) == {}


def test_adopting_merges_folders_and_loses_nothing(measured, sfm, tmp_path):
    machine = json.loads((measured / f"{NAME}.json").read_text())["machine"]
    name = gpus.result_name(machine)
    old = {"name": name, "date": "2026-11-23", "figures": {"plush_psnr": 1.0}, "runs": [], "speed": {"old": True}}
    into, part, other = tmp_path / "results", tmp_path / "part", tmp_path / "other"
    into.mkdir()
    (into / f"{name}.json").write_text(json.dumps(old))
    Bench({"caliterra": sfm}, part, PLAN).quality(["caliterra"])
    with pytest.raises(SystemExit, match="plush and speed"):
        training_gpu.adopt([part], into)
    other.mkdir()
    (other / f"{NAME}.json").write_text(json.dumps({"machine": "NVIDIA L4", "rows": {}}))
    with pytest.raises(SystemExit, match="2 kinds of device"):
        training_gpu.adopt([measured, other], into)
    assert json.loads((into / f"{name}.json").read_text()) == old
    training_gpu.adopt([measured, part], into)
    result = json.loads((into / f"{name}.json").read_text())
    assert result["name"] == name and result["machine"] == machine
    assert set(result["rows"]) == {"plush", "plush compensated", "speed", "sizes", "caliterra"}
    assert result["speed"]["gaussians"] == 300 and result["figures"]["caliterra_psnr"] > 10
    assert result["figures"]["plush_time_ratio"] > 0  # the baseline came along
    training_gpu.adopt([part], into)  # what was adopted stays
    assert "plush" in json.loads((into / f"{name}.json").read_text())["rows"]


def test_gpus_are_named_as_their_makers_name_them():
    for device, name in (("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("Tesla T4", "T4")):
        assert gpus.model_of(device) == name and name in gpus.GPUS
    assert gpus.result_name("NVIDIA H200") == "training-h200"
    model, result = gpus.newest()
    assert gpus.model_of(result["machine"]) == model and result["speed"]["ms_per_iteration"] > 0


@pytest.mark.parametrize(
    ("names", "preset"), [(trainings.ON_CPU, presets.CPU["draft"]), (trainings.ON_GPU, presets.GPU["draft"])]
)
def test_every_trick_changes_the_preset(names, preset):
    changed = [trainings.ABLATION[name](preset) for name in names if name not in trainings.UNCHANGED]
    assert preset not in changed
    assert len(set(changed)) == len(changed)


def test_every_byte_of_a_step_belongs_to_one_kernel():
    named = [work for _, works in training_floor.KERNELS.values() for work in works]
    assert sorted(named) == sorted(work.name for work in training_floor.TRAFFIC if work.after is not None)
    kernels = {  # as torch's profiler names them
        "blend_backward": 1344.8,
        "blend": 592.0,
        "void cub::CUB_300001_SM_900::detail::radix_sort::DeviceRadixSortOnesweepKernel<": 110.1,
        "void gsplat::intersect_tile_kernel<float>(bool, unsigned int": 50.4,
        "void gsplat::projection_ewa_3dgs_fused_bwd_kernel<float>(uns": 44.5,
        "void at::native::vectorized_elementwise_kernel<4, at::native": 29.4,
    }
    parts = training_floor.against_floor(kernels, "H100")
    assert parts["blend, forward and backward"]["us"] == pytest.approx(1344.8 + 592.0)
    assert parts["tile lists (gsplat)"]["us"] == pytest.approx(110.1 + 50.4)
    assert parts["projection backward (gsplat)"]["us"] == 44.5
    assert parts["other"]["us"] == 29.4
    assert sum(part["floor_us"] for part in parts.values()) == pytest.approx(
        training_floor.totals()[1] / 3.35e12 * 1e6, abs=1
    )


def test_times_on_other_gpus_follow_from_the_measured_one():
    """At P0 and full resolution the blend takes what it took; with half the Gaussians all else takes half as long."""
    speed = {"kernels_us": {"blend": 2000.0}, "all_kernels_us": 3000.0, "gaussians": 300_000, "image": [1200, 900]}
    schedule = replace(presets.GPU["draft"].schedule, half_from=0.0, full_from=0.0)
    preset = replace(presets.GPU["draft"], max_gaussians=150_000, schedule=schedule)
    assert gpus.iteration_ms(speed, "H100", preset, "H100") == pytest.approx(2.5)
    bandwidth = gpus.GPUS["H200"].bandwidth / gpus.GPUS["H100"].bandwidth
    assert gpus.iteration_ms(speed, "H200", preset, "H100") == pytest.approx(2.0 + 0.5 * bandwidth)
