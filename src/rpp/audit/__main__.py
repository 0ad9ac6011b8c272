"""What can be won, before it is paid for: ``python -m rpp.audit --config conf/rpp.yaml``."""

from rpp.audit.command import main
from rpp.cli import reporting_mistakes

if __name__ == "__main__":
    reporting_mistakes(main, None)
