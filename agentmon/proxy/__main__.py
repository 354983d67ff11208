"""`python -m agentmon.proxy CONFIG`, in the service namespace, started by the daemon as root."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import msgspec

from agentmon import service
from agentmon.errors import AgentmonError
from agentmon.proxy.worker import Config, Worker, raise_descriptors


def main() -> int:
    config = msgspec.convert(service.read_config(sys.argv), Config)
    logging.basicConfig(level=logging.ERROR, format="proxy: %(message)s")
    listeners = [(service.listen_tcp(address, port), 80 if port == 80 else 443) for address, port in config.listen]
    control = service.listen_unix(Path(config.socket))
    try:
        worker = Worker(config, control)
        raise_descriptors()
    except AgentmonError as e:
        print(f"error: {e.message}\nhint: {e.hint}", file=sys.stderr)
        return e.exit_code
    if config.user:
        service.drop(config.user)
    service.run(lambda: worker.serve(listeners))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
