"""``python -m semcorr``: the command line that both engines run."""

from semcorr.cli import main

if __name__ == "__main__":
    main()
