"""`python -m training.check-data`: the same as `python -m training.check_data`."""  # noqa: N999

import sys

from training.check_data import main

if __name__ == "__main__":
    sys.exit(main())
