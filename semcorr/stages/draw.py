"""draw: a few pairs of each category as one backbone with one set of weights matches them, and similarity maps.

All weights show the same pairs, under the same rule, so that they can be laid side by side. Both are chosen by the
scores of the grid's first backbone with its first weights.
"""

from semcorr import pck
from semcorr.artifacts.progress import progress
from semcorr.artifacts.provenance import expect, provenance, read_table, write_result
from semcorr.artifacts.store import Store
from semcorr.datasets.base import read_images
from semcorr.engine.graph import Job
from semcorr.params import Params
from semcorr.report.gallery import best_rule, chosen, drawn_pair, similarity_map


def draw(job: Job, params: Params) -> str:
    """Write the pictures of one backbone, weights and dataset as one JSON file."""
    inputs = {role: expect(path, job.expects[role]) for role, path in job.inputs.items() if role != "store"}
    settings = params.evaluate
    threshold = settings.headline
    key = pck.threshold_key(threshold)
    scores = {
        role.split("/")[-1]: read_table(path).to_pandas()
        for role, path in job.inputs.items()
        if role.startswith("evaluate pairs ")
    }
    rule = best_rule(scores, key)
    role = f"match matches {'/'.join(job.cell.values())}/{rule}"
    matches = read_table(job.inputs[role]).to_pandas()
    reference = settings.references[params.datasets[job.cell["dataset"]].format][0]
    distance, lengths = pck.errors(matches, reference, job.inputs[role])
    matches = matches.assign(correct=pck.is_correct(distance, lengths, [threshold])[:, 0], error=distance / lengths)
    folder = job.inputs["images"].parent / "images"
    files = {image.id: folder / image.file for image in read_images(job.inputs["images"])}
    pairs = chosen(scores[rule], key)
    with Store(job.inputs["store"], job.expects["store"]) as store:
        inputs["store"] = store.provenance
        sampling = inputs[role]["settings"][f"rules.{rule}"]["sampling"]
        drawn = []
        for pair in progress(pairs, unit="pair", desc=job.title):
            rows = matches[matches["pair"] == pair["pair"]]
            extra = similarity_map(rows, files, store, sampling) if pair["which"] == "median" else None
            drawn.append({**pair, **drawn_pair(rows, files), "map": extra})
    write_result(
        job.outputs["gallery"],
        {"threshold": key, "reference": reference, "rule": rule, "pairs": drawn, "provenance": provenance(job, inputs)},
    )
    return f"{' '.join(job.cell.values())}: {len(drawn)} pairs by {rule}"
