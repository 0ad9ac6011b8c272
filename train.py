"""Command line of RPP: ``python train.py {fit,validate,test,predict} --config conf/rpp.yaml``."""

from rpp.cli import run

if __name__ == "__main__":
    run()
