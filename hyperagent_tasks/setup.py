"""What `hyperagent up` does once on this host: choose the parts, make identity and node. `--stop` stops the node."""

from __future__ import annotations

import json
import sys

from hyperagent_common import settings, telemetry
from hyperagent_common.errors import HyperagentError
from hyperagent_tasks import requirements
from hyperagent_tasks.parts import Parts

NEVER = 3


def main(argv: list[str]) -> int:
    """Prints one JSON object: the chosen parts, or the error with its mend; `NEVER` where it does not mend itself."""
    try:
        loaded = settings.load()
        telemetry.configure(loaded, "setup", stream=sys.stderr)
        parts = Parts(loaded)
        if "--stop" in argv:
            parts.forge.stop()
            return 0
        lacking = requirements.lacking(parts)
        if lacking:
            print(json.dumps({"error": lacking}))
            return NEVER
        health = parts.forge.start()
    except HyperagentError as error:
        print(json.dumps({"error": error.message, "mend": error.mend}))
        return 1
    print(json.dumps({**parts.chosen.__dict__, "nid": health.nid}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
