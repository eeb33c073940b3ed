# %% [markdown]
# # Explore an experiment
#
# Reads what `dvc repro` or `snakemake --cores all` made of params.yaml: the scores of all cells, the matches, the
# feature stores. Open it as a notebook (VS Code and Jupyter with jupytext read these cells), or run it as a script in
# the project's folder: `python workflow/notebooks/explore.py`.

# %%
import sys

import matplotlib
import numpy as np
import pandas as pd
import torch

if "ipykernel" not in sys.modules:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

from semcorr import matching, params, pck
from semcorr.artifacts.store import Store
from semcorr.datasets.base import read_images
from semcorr.datasets.decode import decode
from semcorr.engine import graph
from semcorr.report import compare, pictures

experiment = params.load()
plan = graph.Graph(experiment)
scores = pd.read_csv(plan.job("headline").outputs["csv"])
scores[["dataset", "backbone", "weights", "rule", "pck", "low", "high"]]

# %% [markdown]
# ## One cell against another
# The two ends of the first dataset's table, by a paired bootstrap.

# %%
dataset = experiment.grid.datasets[0]
ranked = scores[scores["dataset"] == dataset].sort_values("pck")
worst, best = ranked["name"].iloc[0], ranked["name"].iloc[-1]
print(compare.table(compare.compare(worst, best, experiment), ranked["threshold"].iloc[0]))

# %% [markdown]
# ## Where the errors lie
# Distance over reference, of every keypoint; the curve is PCK over thresholds.

# %%
matches = compare.read(best, experiment)
reference = scores.set_index("name").loc[best, "reference"]
distance, length = pck.errors(matches, reference, best)
error = pd.Series(distance / length, matches.index)
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.ecdf(error)
axes.set(xlim=(0, 0.3), xlabel=f"error over {reference}", ylabel="fraction of keypoints", title=best)
figure

# %% [markdown]
# ## One pair, drawn
# The pair with the largest median error: what it was asked, what it answered, and how similar the target looks to the
# first keypoint.

# %%
pair = error.groupby(matches["pair"]).median().idxmax()
rows = matches[matches["pair"] == pair]
images = plan.job("fetch", dataset).outputs["images"]
files = {image.id: images.parent / "images" / image.file for image in read_images(images)}
source, target = (decode(files[rows[f"{side}_image"].iloc[0]], upright=False) for side in ("source", "target"))
points = {side: rows[[f"{side}_x", f"{side}_y"]].to_numpy() for side in ("source", "predicted", "true")}
drawn = pictures.matches(source, target, points["source"], points["predicted"], side=400, true=points["true"])
drawn

# %%
backbone, weights, _, rule = best.split("/")
job = plan.job("match", backbone, weights, dataset, rule)
with Store(job.inputs["store"], job.expects["store"]) as store:
    first, second = (
        (matching.normalise(torch.from_numpy(store.array(name)).float()), store.grid(name))
        for name in (rows["source_image"].iloc[0], rows["target_image"].iloc[0])
    )
cell = torch.from_numpy(first[1].pixels_to_cells(points["source"][:1]))
heatmap = matching.heatmaps(matching.sample(first[0], cell, "bilinear"), second[0])[0].numpy()
shown = pictures.similarity(
    source, target, points["source"][0], heatmap, second[1], side=400, predicted=points["predicted"][0]
)
shown

# %%
print(f"{best}: median error {np.median(error):.3f} of {reference}; hardest pair {pair}; {job.outputs['matches']}")
