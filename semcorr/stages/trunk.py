"""trunk: what enters the tuned blocks, for every image of a dataset, so that fine-tuning never runs the rest again."""

from torch import Tensor

from semcorr.backbones.base import Backbone
from semcorr.graph import Job
from semcorr.params import Params
from semcorr.stages.extract import encode


def trunk(job: Job, params: Params) -> str:
    """Write the activations that enter the last `trunk.blocks` blocks up to the feature layer, padding included."""
    spec = params.backbones[job.cell["backbone"]]

    def forward(network: Backbone, images: Tensor) -> Tensor:
        return network.trunk(images, network.stop(spec.layer) - params.trunk.blocks)

    return encode(job, params, forward, params.trunk.precision, valid_only=False)
