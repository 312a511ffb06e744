"""`python -m verglas`."""

import sys

from verglas.cli import main

sys.exit(main())
