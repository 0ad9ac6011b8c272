"""Command line of RPP: ``python train.py {fit,validate,test,predict} --config conf/rpp.yaml``."""

import sys

from rpp.help import answer_help

if __name__ == "__main__":
    answer_help(sys.argv[1:])  # before the seconds that the imports of a run take
    from rpp.cli import run

    run()
