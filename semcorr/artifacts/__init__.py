"""What is on disk: files that are complete or not there, what each says about how it was made, and feature stores."""
