"""report: all cells as one table (JSON, CSV, Markdown), and a self-contained HTML page with pictures of matches."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image as PillowImage
from PIL import ImageDraw

from semcorr.files import read_json, replacing, write_json, write_text
from semcorr.graph import STAGES, Job
from semcorr.params import Params
from semcorr.pck import threshold_key
from semcorr.provenance import KEY, dumps, expect, provenance

RIGHT, WRONG = (31, 158, 84), (214, 48, 49)


def report(job: Job, params: Params) -> str:
    """Write the tables and the page."""
    cells = {}
    for role, path in job.inputs.items():
        expect(path, job.expects[role])
        cells[role] = read_json(path)
    axes = STAGES["evaluate"].axes
    rows = [dict(zip(axes, role.split("/"), strict=True)) | _numbers(cell) for role, cell in cells.items()]
    table = pd.DataFrame(rows)
    write_json(job.outputs["summary"], _summary(cells, params))
    with replacing(job.outputs["csv"]) as partial:
        table.to_csv(partial, index=False)
    write_text(job.outputs["markdown"], _markdown(cells, params))
    record = provenance(job)
    write_text(job.outputs["html"], _page(cells, params, record))
    return f"{len(cells)} cells: {job.outputs['markdown']}, {job.outputs['html']}"


def headline(params: Params) -> str:
    """The threshold that tables lead with: the second, PCK@0.10 in the field."""
    thresholds = params.evaluate.thresholds
    return threshold_key(thresholds[min(1, len(thresholds) - 1)])


def _numbers(cell: dict[str, Any]) -> dict[str, Any]:
    """One row of summary.csv."""
    row: dict[str, Any] = {"name": cell["name"], "reference": cell["protocol"]["reference"]}
    row |= {"num_pairs": cell["num_pairs"], "num_keypoints": cell["num_keypoints"]}
    for average in ("keypoint", "image", "category"):
        for key, value in cell[f"overall_{average}"].items():
            row[f"{average}_{key}"] = value["mean"]
            row[f"{average}_{key}_low"], row[f"{average}_{key}_high"] = value["ci95"]
    return row


def _summary(cells: dict[str, Any], params: Params) -> dict[str, Any]:
    """What `dvc metrics` shows: dataset, backbone, weights, rule, then scalars."""
    summary: dict[str, Any] = {}
    for role, cell in cells.items():
        backbone, weights, dataset, rule = role.split("/")
        place = summary.setdefault(dataset, {}).setdefault(backbone, {}).setdefault(weights, {})
        numbers = {key.lower(): value["mean"] for key, value in cell["overall_keypoint"].items()}
        numbers |= {
            f"{average}_{headline(params).lower()}": cell[f"overall_{average}"][headline(params)]["mean"]
            for average in ("image", "category")
        }
        place[rule] = numbers
    return summary


def _rows(cells: dict[str, Any], dataset: str, params: Params) -> list[dict[str, Any]]:
    """Table rows of one dataset, with the best headline marked."""
    key = headline(params)
    found = []
    for role, cell in cells.items():
        backbone, weights, name, rule = role.split("/")
        if name != dataset:
            continue
        overall = cell["overall_keypoint"]
        others = list(cell["references"])[1:]
        found.append(
            {
                "backbone": backbone,
                "weights": weights,
                "rule": rule,
                "values": [100 * overall[k]["mean"] for k in overall],
                "interval": [100 * bound for bound in overall[key]["ci95"]],
                "image": 100 * cell["overall_image"][key]["mean"],
                "category": 100 * cell["overall_category"][key]["mean"],
                "others": [100 * cell["references"][name]["overall_keypoint"][key]["mean"] for name in others],
                "other_names": others,
                "headline": 100 * overall[key]["mean"],
            }
        )
    best = max(row["headline"] for row in found)
    return [row | {"best": row["headline"] == best} for row in found]


def _markdown(cells: dict[str, Any], params: Params) -> str:
    """One table per dataset."""
    key = headline(params)
    parts = []
    for dataset in params.grid.datasets:
        rows = _rows(cells, dataset, params)
        example = next(cell for cell in cells.values() if cell["dataset"] == dataset)
        heads = ["backbone", "weights", "rule", *(threshold_key(t) for t in params.evaluate.thresholds)]
        heads += [f"95 % interval of {key}", f"{key} per image", f"{key} per category"]
        heads += [f"{key} ({name})" for name in rows[0]["other_names"]]
        lines = [
            f"### {dataset}",
            "",
            f"PCK in percent, per keypoint unless named otherwise; reference {example['protocol']['reference']}; "
            f"{example['num_pairs']:,} pairs, {example['num_keypoints']:,} keypoints.",
            "",
            "| " + " | ".join(heads) + " |",
            "|" + "---|" * 3 + "---:|" * (len(heads) - 3),
        ]
        for row in rows:
            values = [
                *(f"{value:.1f}" for value in row["values"]),
                "{:.1f} to {:.1f}".format(*row["interval"]),
            ]
            values += [
                f"{row['image']:.1f}",
                f"{row['category']:.1f}",
                *(f"{value:.1f}" for value in row["others"]),
            ]
            values = [row["backbone"], row["weights"], row["rule"], *values]
            lines.append("| " + " | ".join(values) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _page(cells: dict[str, Any], params: Params, record: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("semcorr"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    datasets = []
    for dataset in params.grid.datasets:
        cell = next(cell for cell in cells.values() if cell["dataset"] == dataset)
        datasets.append(
            {
                "name": dataset,
                "cell": cell,
                "rows": _rows(cells, dataset, params),
                "galleries": [
                    {
                        "backbone": backbone,
                        "weights": params.grid.weights,
                        "pairs": _gallery(cells, dataset, backbone, params),
                    }
                    for backbone in params.grid.backbones
                ],
            }
        )
    return environment.get_template("report.html").render(
        meta=f'<meta name="{KEY}" content="{html.escape(dumps(record))}">',
        preset=params.preset,
        datasets=datasets,
        thresholds=[threshold_key(threshold) for threshold in params.evaluate.thresholds],
        headline=headline(params),
        evaluate=params.evaluate,
    )


def _gallery(cells: dict[str, Any], dataset: str, backbone: str, params: Params) -> list[dict[str, Any]]:
    """One pair per category, drawn under every weights, first rule."""
    rule = params.grid.rules[0]
    by_weights = [cells[f"{backbone}/{weights}/{dataset}/{rule}"]["examples"] for weights in params.grid.weights]
    suffixes = {"spair": ".jpg", "pfwillow": ".png"}
    folder = Path("data") / dataset / "images"
    suffix = suffixes[params.datasets[dataset].format]
    return [
        {
            "category": examples[0]["category"],
            "pictures": [
                {
                    "uri": picture(example, folder, suffix),
                    "right": sum(example["correct"]),
                    "count": len(example["correct"]),
                    "weights": weights,
                }
                for weights, example in zip(params.grid.weights, examples, strict=True)
            ],
        }
        for examples in zip(*by_weights, strict=True)
    ]


def picture(example: dict[str, Any], folder: Path, suffix: str, height: int = 200) -> str:
    """Source and target side by side with a line per match, green where right and red where wrong, as a data URI."""
    images = [
        PillowImage.open(folder / f"{example[side]}{suffix}").convert("RGB")
        for side in ("source_image", "target_image")
    ]
    scales = [height / image.height for image in images]
    small = [image.resize((round(image.width * height / image.height), height)) for image in images]
    gap = 6
    left = small[0].width + gap
    canvas = PillowImage.new("RGB", (left + small[1].width, height), (255, 255, 255))
    canvas.paste(small[0], (0, 0))
    canvas.paste(small[1], (left, 0))
    draw = ImageDraw.Draw(canvas)
    for source, predicted, true, correct in zip(
        example["source"], example["predicted"], example["true"], example["correct"], strict=True
    ):
        start = [(value + 0.5) * scales[0] for value in source]
        end, truth = (
            [(point[0] + 0.5) * scales[1] + left, (point[1] + 0.5) * scales[1]] for point in (predicted, true)
        )
        colour = RIGHT if correct else WRONG
        draw.line([*start, *end], fill=colour, width=2)
        if not correct:
            draw.ellipse(_box(truth, 4), outline=RIGHT, width=2)
        for point in (start, end):
            draw.ellipse(_box(point, 3), fill=colour, outline="white")
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _box(center: list[float], radius: int) -> tuple[float, float, float, float]:
    return center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius
