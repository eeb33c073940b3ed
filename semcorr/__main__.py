"""``python -m semcorr``: the command line that both engines run."""

import sys

from semcorr.engine.warm import hand_over

if __name__ == "__main__":
    code = hand_over(sys.argv[1:])
    if code is not None:
        sys.exit(code)
    from semcorr.cli import main

    main()
