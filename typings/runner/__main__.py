"""`python -m runner` where runner is installed; in a checkout runner.py itself is run."""

from runner import main

raise SystemExit(main())
