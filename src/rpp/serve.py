"""Serve a policy over HTTP: ``python -m rpp.serve --config conf/rpp.yaml``."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Literal

from fastapi.exceptions import RequestValidationError
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from litserve import LitServer

from rpp import cli
from rpp.arguments import described
from rpp.callbacks.environment import RewardEnvironment
from rpp.cli import CLI, reporting_mistakes
from rpp.restore import find_checkpoint
from rpp.runs import resolve_checkpoint
from rpp.serving.routes import Routes, refuse
from rpp.serving.worker import TOKEN, PolicyAPI
from rpp.terminal import print_result
from rpp.types import InputError

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class ServerSettings:
    """Where and how the server answers.

    Attributes:
        host: Address to listen at; the default can be reached from this machine alone.
        port: Port to listen at.
        max_batch_size: Requests answered together.
        linger_ms: Milliseconds for which the first request of a batch waits for others.
        timeout: Seconds after which a request that still waits is given up, and after which a
            server that was stopped no longer waits for its last answers.
        max_request_kb: Size of a request, in 1000 bytes.
        devices: Devices to use, each with workers of its own; ``auto``: all.
        workers_per_device: Processes with a policy and a language model each.
        feedback: File to which rankings and what users chose from them are appended; ``null``:
            none is kept.
        log_level: Least important messages shown.
    """

    host: Literal["127.0.0.1", "0.0.0.0", "::"] = LOOPBACK
    port: int = 8000
    max_batch_size: int = 64
    linger_ms: float = 2.0
    timeout: float = 60.0
    max_request_kb: int = 256
    devices: int | Literal["auto"] = 1
    workers_per_device: int = 1
    feedback: str | None = None
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "warning"

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            InputError: If one is.
        """
        if not 1024 <= self.port <= 65535:
            raise InputError(f"serve.port is {self.port}: give 1024 to 65535")
        for name in ("max_batch_size", "timeout", "max_request_kb", "workers_per_device"):
            if getattr(self, name) <= 0:
                raise InputError(f"serve.{name} is {getattr(self, name)}: give more than 0")
        if not 0 <= self.linger_ms < 1000 * self.timeout:
            raise InputError(f"serve.linger_ms is {self.linger_ms}: give 0 or more")


class ServeCLI(CLI):
    """The settings of a run, of which the environment and the server are made."""

    environment: RewardEnvironment
    settings: ServerSettings
    checkpoint: Path

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the group ``serve`` and the checkpoint."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="The checkpoint.")
        parser.add_class_arguments(ServerSettings, "serve")

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint."""
        path = resolve_checkpoint("serve", self.config.ckpt_path, self.config.name)
        assert path is not None
        find_checkpoint(path)
        self.checkpoint = path

    def instantiate_classes(self) -> None:
        """Make environment and settings; trainer and learner are not needed."""
        made = self.parser.instantiate_classes(self.config)
        self.environment, self.settings = made.environment, made.serve


def make_server(
    checkpoint: Path, environment: RewardEnvironment, settings: ServerSettings
) -> LitServer:
    """The server of a policy.

    Args:
        checkpoint: The policy's checkpoint.
        environment: Language model and decoding.
        settings: Where and how it answers.

    Raises:
        InputError: If the environment cannot be sent to another process.
    """
    log = None if settings.feedback is None else Path(settings.feedback)
    api = PolicyAPI(
        str(checkpoint),
        described(environment),
        Routes(log),
        settings.max_batch_size,
        settings.linger_ms / 1000,
    )
    server = LitServer(
        api,
        devices=settings.devices,
        workers_per_device=settings.workers_per_device,
        timeout=settings.timeout,
        max_payload_size=1000 * settings.max_request_kb,
    )
    server.app.add_exception_handler(RequestValidationError, refuse)
    server.uvicorn_graceful_timeout = int(settings.timeout)
    return server


def main(args: ArgsType = None) -> None:
    """Serve until stopped; SIGTERM and Ctrl-C let the requests under way be answered."""
    given = cli.main(args, ServeCLI, run=False, save_config_callback=None)
    assert isinstance(given, ServeCLI)
    settings = given.settings
    server = make_server(given.checkpoint, given.environment, settings)
    _stop_on_sigterm()
    print_result(
        f"{given.checkpoint} is served at http://{settings.host}:{settings.port} as soon as /health"
        " answers; /docs explains the requests"
    )
    if settings.host != LOOPBACK and not os.environ.get(TOKEN):
        print_result(f"Anyone who reaches this machine may ask: set {TOKEN} to a secret token")
    try:
        server.run(
            settings.host, settings.port, num_api_servers=1, log_level=settings.log_level,
            generate_client_file=False, access_log=False,
        )  # fmt: skip
    except KeyboardInterrupt:
        print_result("Stopped before it was ready")
    except RuntimeError as error:  # of LitServe, which has printed what happened in the worker
        raise InputError(f"the server did not start ({error}): the reason stands above") from error
    finally:
        for worker in getattr(server, "inference_workers", []):
            worker.terminate()


def _stop_on_sigterm() -> None:
    """Treat SIGTERM as Ctrl-C, on which LitServe drains; its own processes handle it themselves."""
    own = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    reporting_mistakes(main, None)
