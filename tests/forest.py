"""A structured forest in OpenCV's format, of one tree with two leaves: an edge where the picture changes, else none."""

from __future__ import annotations

from pathlib import Path

PATCH, INNER, SHRINK = 32, 16, 2
VOTES = 100  # of a patch for its centre: enough for a strong edge
OPTIONS = {
    "stride": 2,
    "shrinkNumber": SHRINK,
    "patchSize": PATCH,
    "patchInnerSize": INNER,
    "numberOfGradientOrientations": 4,
    "gradientSmoothingRadius": 0,
    "regFeatureSmoothingRadius": 2,
    "ssFeatureSmoothingRadius": 8,
    "gradientNormalizationRadius": 4,
    "selfsimilarityGridSize": 5,
    "numberOfTrees": 1,
    "numberOfTreesToEvaluate": 1,
}


def write_forest(path: Path, threshold: float = 0.05, **options: int) -> Path:
    """Where the magnitude of the gradient at a patch's centre reaches `threshold`, the centre of the patch is edge."""
    cells = PATCH // SHRINK
    feature = 3 * cells**2 + (cells // 2) * cells + cells // 2  # after three channels of colour
    centre = (INNER // 2) * INNER + INNER // 2
    lines = ["%YAML:1.0", "---", "options:", *(f"   {name}: {value}" for name, value in {**OPTIONS, **options}.items())]
    rows = {
        "childs": [2, 0, 0],
        "featureIds": [feature, 0, 0],
        "thresholds": [threshold, 0.0, 0.0],
        "edgeBoundaries": [0, 0, 0, VOTES],
        "edgeBins": [centre] * VOTES,
    }
    for name, values in rows.items():
        lines += [f"{name}:", f"   - [ {', '.join(map(str, values))} ]"]
    path.write_text("\n".join(lines) + "\n")
    return path
