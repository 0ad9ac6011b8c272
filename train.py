"""Command line of RPP: ``python train.py {fit,validate,test,predict} --config conf/rpp.yaml``."""

import sys

from rpp import help as usage

if __name__ == "__main__":
    if usage.asks_help(sys.argv[1:]):  # before the seconds that the imports of a run take
        print(usage.SHORT)  # noqa: T201
        sys.exit()
    from rpp.cli import run

    run()
