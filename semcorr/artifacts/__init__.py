"""Files on disk: atomic writes, the provenance stored in each output, and feature stores."""
