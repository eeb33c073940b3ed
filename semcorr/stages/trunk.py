"""trunk: what enters the tuned blocks, for every image of a dataset, so that fine-tuning never runs the rest again."""

from semcorr.engine.graph import Job
from semcorr.params import Params
from semcorr.stages.extract import Encoder, encode


def trunk(job: Job, params: Params) -> str:
    """Write the activations that enter the last `trunk.blocks` blocks up to the feature layer, padding included."""
    spec = params.backbones[job.cell["backbone"]]
    encoder = Encoder(
        forward=lambda network, images: network.trunk(images, network.stop(spec) - params.trunk.blocks),
        shape=lambda network, cells: network.activation_shape(cells),
        precision=params.trunk.precision,
        key="trunk.precision",
        stop=lambda network: network.stop(spec) - params.trunk.blocks,
        valid_only=False,
    )
    return encode(job, params, encoder)
