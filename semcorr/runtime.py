"""What the machine gives: the device, the number of threads, and how they are kept from changing results."""

import logging

import torch

from semcorr.errors import UserError
from semcorr.params import Params

logger = logging.getLogger(__name__)


def device(params: Params) -> torch.device:
    """Set up torch as params.yaml says and return the device to compute on.

    The engines hand over different OMP_NUM_THREADS, and training on a CPU depends on it: it is set here.

    Raises:
        UserError: runtime.device is cuda and there is none.
    """
    torch.set_num_threads(params.threads)
    wanted = params.runtime.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("params.yaml: runtime.device: cuda, but torch sees no GPU; allowed here: cpu, auto")
    chosen = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if chosen == "cuda":  # on the CPU they are deterministic anyway, and asking costs 2.6 s of imports
        torch.use_deterministic_algorithms(True, warn_only=True)
    if wanted == "auto":
        logger.info("computing on %s (runtime.device: auto), %d threads", chosen, params.threads)
    return torch.device(chosen)
