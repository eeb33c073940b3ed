"""The stage graph of an experiment, the records of its jobs, which are current, and how both engines learn it."""
