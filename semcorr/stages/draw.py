"""draw: pictures of a few pairs of each category, best, median and worst, and similarity maps of a few keypoints."""

from semcorr import pck
from semcorr.artifacts.progress import progress
from semcorr.artifacts.provenance import expect, provenance, read_table, write_result
from semcorr.artifacts.store import Store
from semcorr.datasets.base import read_images
from semcorr.engine.graph import Job
from semcorr.params import Params
from semcorr.report.gallery import pair_picture, ranked, similarity_maps


def draw(job: Job, params: Params) -> str:
    """Write the pictures of one backbone, weights and dataset under the grid's first rule, as one JSON file."""
    inputs = {role: expect(job.inputs[role], job.expects[role]) for role in ("matches", "images")}
    matches = read_table(job.inputs["matches"]).to_pandas()
    settings = params.evaluate
    reference = settings.references[params.datasets[job.cell["dataset"]].format][0]
    threshold = pck.headline(settings.thresholds)
    distance, lengths = pck.errors(matches, reference, job.inputs["matches"])
    matches = matches.assign(correct=pck.is_correct(distance, lengths, [threshold])[:, 0], error=distance / lengths)
    folder = job.inputs["images"].parent / "images"
    files = {image.id: folder / image.file for image in read_images(job.inputs["images"])}
    shown = {category: ranked(part) for category, part in matches.groupby("category")}
    with Store(job.inputs["store"], job.expects["store"]) as store:
        inputs["store"] = store.provenance
        [rule] = params.rules.values()  # the job's parameters hold only this one
        categories = [
            {
                "category": category,
                "pairs": [pair_picture(rank, rows, files) for rank, rows in pairs.items()],
                "maps": similarity_maps(pairs["median"], files, store, rule.sampling),
            }
            for category, pairs in progress(shown.items(), unit="category", desc=job.title)
        ]
    write_result(
        job.outputs["gallery"],
        {"threshold": pck.threshold_key(threshold), "categories": categories, "provenance": provenance(job, inputs)},
    )
    return f"{' '.join(job.cell.values())}: {3 * len(categories)} pairs"
