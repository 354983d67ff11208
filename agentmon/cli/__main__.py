"""`python -m agentmon.cli`: how a command starts a daemon with its own interpreter."""

import sys

from agentmon.cli.main import main

sys.exit(main())
