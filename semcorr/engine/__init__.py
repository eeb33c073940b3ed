"""What an experiment consists of and what of it is current: the stage graph, records, and both engines told alike."""
