"""One module per stage, each with one function of the same name: `(job, params) -> one line for the terminal`.

A stage's job names everything that it reads or writes; it writes exactly the job's outputs, by rename.
"""
