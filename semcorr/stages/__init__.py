"""One module per stage, each with one function of the stage's name: `(job, params) -> one line for the terminal`.

Everything a stage reads or writes is named by its job; it writes exactly the job's outputs, by rename.
"""
