"""Networks: how they are built, loaded, run over images, and trained."""
