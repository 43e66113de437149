"""`python -m lab.score` from chapters/: the scorer of field/score.py."""

import sys

from .field.score import main

if __name__ == "__main__":
    sys.exit(main())
