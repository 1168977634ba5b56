"""What the rows of training_gpu.py and the baselines of baseline_gsplat.py say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train import presets

SCENES = ("plush", "caliterra")
VARIANTS = ("", " compensated", " 100k", " 80k")
# Figure and what is asked of it.
WANTED = (
    ("plush_psnr", ">=", 27.6),
    ("plush_train_s", "<=", 20.0),
    ("plush_gaussians", "<=", 200_000),
    ("plush_time_ratio", ">=", 10.0),
    ("plush_psnr_gain", ">=", 0.0),
    ("plush_ssim_gain", ">=", 0.0),
    ("caliterra_time_ratio", ">=", 10.0),
    ("caliterra_psnr_gain", ">=", 0.0),
    ("caliterra_ssim_gain", ">=", 0.0),
    ("ms_per_iteration_300k", "<=", 3.0),
    ("size_ratio_ply", ">=", 5.0),
    ("size_ratio_sog", ">=", 75.0),
)


def baselines(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of baseline_gsplat.py by scene."""
    found = {file.stem.removeprefix("baseline-"): file for file in sorted(folder.glob("baseline-*.json"))}
    return {scene: json.loads(file.read_text(encoding="utf-8"))["figures"] for scene, file in found.items()}


def report(rows: dict[str, Any], baseline: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, what stands beside them) of the rows and baselines that are there."""
    figures: dict[str, Any] = {}
    sizes = rows.get("sizes", {}).get("files", {})
    for scene in SCENES:
        if scene in rows:
            row = rows[scene]
            figures |= {
                f"{scene}_psnr": row["psnr"],
                f"{scene}_ssim": row["ssim"],
                f"{scene}_train_s": row["seconds"],
                f"{scene}_gaussians": row["gaussians"],
            }
        for name in (scene + variant for variant in VARIANTS):
            if name in rows and scene in baseline:
                prefix = name.replace(" ", "_")
                against = compared(rows[name], baseline[scene], sizes.get(name, {}))
                figures |= {f"{prefix}_{key}": value for key, value in against.items()}
    for key in ("size_ratio_ply", "size_ratio_sog"):
        # Of the smallest model of each scene that is at least as good as the baseline's; the scene where it is less.
        found = [figures[f"{name}_{key}"] for name in smallest(rows, baseline) if f"{name}_{key}" in figures]
        if found:
            figures[key] = min(found)
    details: dict[str, Any] = {"baselines": baseline} if baseline else {}
    if "plush" in rows:
        details["runs"] = rows["plush"]["runs"]
    if "speed" in rows:
        details["speed"] = rows["speed"]
        figures["ms_per_iteration_300k"] = rows["speed"]["ms_per_iteration"]
        figures["floor_ms_300k"] = round(rows["speed"]["floor_us"] / 1e3, 3)
    for name in presets.GPU:
        if name in rows:
            figures |= {f"{name}_s": rows[name]["seconds"], f"{name}_psnr_fitted": rows[name]["psnr_fitted"]}
    return figures, details


def smallest(rows: dict[str, Any], baseline: dict[str, dict[str, Any]]) -> list[str]:
    """For each scene with a baseline the name, as in the figures, of the smallest model without loss against it."""
    found = []
    for scene in (scene for scene in SCENES if scene in baseline):
        names = [scene + variant for variant in VARIANTS if scene + variant in rows]
        against = {name: compared(rows[name], baseline[scene], {}) for name in names}
        names = [name for name in names if min(against[name]["psnr_gain"], against[name]["ssim_gain"]) >= 0]
        if names:
            found.append(min(names, key=lambda name: int(rows[name]["ply_bytes"])).replace(" ", "_"))
    return found


def compared(row: dict[str, Any], baseline: dict[str, Any], sizes: dict[str, int]) -> dict[str, float]:
    """Ours against the baseline: how many times faster and smaller, and by how much better.

    Where a stand-in computed the baseline's SSIM, it counts as if that had taken no time.
    """
    seconds = baseline["loop_s"] - baseline["ssim_stand_in_s"]
    found = {
        "time_ratio": round(seconds / row["seconds"], 2),
        "psnr_gain": round(row["psnr_raw"] - baseline["psnr"], 3),
        "psnr_fitted_gain": round(row["psnr_fitted"] - baseline["psnr_fitted"], 3),
        "ssim_gain": round(row["ssim"] - baseline["ssim"], 4),
        "size_ratio_ply": round(baseline["ply_bytes"] / row["ply_bytes"], 2),
    }
    if sizes:
        found["size_ratio_sog"] = round(baseline["ply_bytes"] / sizes["sog_bytes"], 1)
    return found


def wanted_table(figures: dict[str, Any]) -> str:
    """Each goal, what was found, and whether it is met."""
    lines = ["| figure | wanted | found | met |", "|---|---|---|---|"]
    for name, sense, limit in WANTED:
        found = figures.get(name)
        met = "" if found is None else "yes" if (found >= limit if sense == ">=" else found <= limit) else "no"
        lines.append(f"| {name} | {sense} {limit:g} | {'not measured' if found is None else f'{found:g}'} | {met} |")
    return "\n".join(lines)


def rows_table(rows: dict[str, Any], baseline: dict[str, dict[str, Any]]) -> str:
    """Quality, time and size of every row and baseline."""
    sizes = rows.get("sizes", {}).get("files", {})
    lines = [
        "| row | s | steps | Gaussians | PSNR | median | raw | fitted | SSIM | PLY, MB | SOG, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for scene, own in baseline.items():
        lines.append(line(f"gsplat, {scene}", own | {"seconds": own["loop_s"], "psnr_raw": own["psnr"]}, {}))
    lines += [line(name, row, sizes.get(name, {})) for name, row in rows.items() if "psnr" in row]
    return "\n".join(lines)


def line(name: str, row: dict[str, Any], sizes: dict[str, int]) -> str:
    cells = [f"{row['seconds']:.1f}", f"{row['iterations']:,}", f"{row['gaussians']:,}"]
    cells += [f"{row[key]:.2f}" for key in ("psnr", "psnr_median", "psnr_raw", "psnr_fitted")]
    cells += [f"{row['ssim']:.4f}", f"{row['ply_bytes'] / 1e6:.1f}"]
    cells.append(f"{sizes['sog_bytes'] / 1e6:.2f}" if sizes else "")
    return f"| {name} | " + " | ".join(cells) + " |"


def parts_table(speed: dict[str, Any]) -> str:
    """Each part of a step beside the time that its bytes take."""
    lines = ["| part of a step | us | floor, us | times |", "|---|---|---|---|"]
    for part, one in speed["parts"].items():
        times = f"{one['us'] / one['floor_us']:.1f}" if one["floor_us"] else ""
        lines.append(f"| {part} | {one['us']:.0f} | {one['floor_us']:.0f} | {times} |")
    lines.append(f"| all kernels | {speed['all_kernels_us']:.0f} | {speed['floor_us']:.0f} | |")
    lines.append(f"| a step | {1e3 * speed['ms_per_iteration']:.0f} | | |")
    return "\n".join(lines)


def ablation_table(table: dict[str, dict[str, Any]]) -> str:
    """By row, and for each scene: quality on the hidden photos, Gaussians and seconds of the training loop."""
    lines = [
        "| row | " + " | ".join(f"{scene}: PSNR | fitted | SSIM | N | s" for scene in table) + " |",
        "|---|" + "---|" * (5 * len(table)),
    ]
    for name in dict.fromkeys(name for rows in table.values() for name in rows):
        cells = [ablation_cells(rows.get(name)) for rows in table.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation_cells(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | " * 4
    cells = [f"{row['psnr']:.2f}", f"{row['psnr_fitted']:.2f}", f"{row['ssim']:.4f}"]
    return " | ".join([*cells, f"{row['gaussians']:,}", f"{row['seconds']:.1f}"])
