"""What the scripts of eval/ share that ask a server many things: options, folder, fan-out.

    add_server_options(parser, "model that answers")
    folder = claim(args.out, args.fresh, {"model": args.model, ...})
    counts = ask_all("answers", folder, total, work, args)

The folder is a step's (runfolder.py): step.json names what its data depend on, journal.jsonl holds
the finished units, data.jsonl and summary.json come last. The same command continues.
"""

import argparse
import json
import os
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from self_lengthen.claim import set_aside
from self_lengthen.cli import at_least
from self_lengthen.endpoint import NO_KEY, Endpoint, Sampling
from self_lengthen.errors import RunError, UserError
from self_lengthen.fanout import Counts, Outcome, Tally
from self_lengthen.files import Row
from self_lengthen.runfolder import BASE_MODEL, StepFolder
from self_lengthen.steps.common import Asking
from self_lengthen.steps.common import ask_all as do_all

KEY_VARIABLE = "OPENAI_API_KEY"
NEUTRAL_PENALTY = 1.0  # changes nothing, so that it is not sent


def add_server_options(
    parser: argparse.ArgumentParser,
    who: str,
    *,
    temperature: float,
    repetition_penalty: float,
    max_tokens: int,
) -> None:
    """`who`: what the served model does here, for the help; the rest are defaults."""
    add, number = parser.add_argument, at_least(0, float)
    add("--base_url", required=True, help="of an OpenAI-compatible server, ends in /v1")
    add("--model", default=BASE_MODEL, help=f"name of the {who}, as it is served")
    add("--api_key", help=f"default: the variable {KEY_VARIABLE}, if it is set")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    add("--fresh", action="store_true", help="set an old folder aside and start over")
    add("--concurrency", type=at_least(1), default=64, help="requests in flight")
    add("--seed", type=int, default=42)
    add("--temperature", type=number, default=temperature)
    add("--top_p", type=number, help="default: the server's")
    add("--top_k", type=int, help="default: the server's; only vLLM and its like know it")
    penalty_help = "1 is not sent, for servers that do not know it"
    add("--repetition_penalty", type=number, default=repetition_penalty, help=penalty_help)
    add("--max_tokens", type=at_least(1), default=max_tokens, help="of one reply")


def sampling_of(args: argparse.Namespace) -> Sampling:
    """Without stop strings: an evaluated text ends where its model ends it."""
    penalty = args.repetition_penalty
    return Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=None if penalty == NEUTRAL_PENALTY else penalty,
        max_tokens=args.max_tokens,
        stop=(),
    )


def sampling_options(args: argparse.Namespace) -> Row:
    """The options that every folder of replies depends on."""
    names = ("model", "seed", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
    return {name: getattr(args, name) for name in names}


def fingerprint(value: Any) -> str:
    """Short, and another one for other data; not safe against intent."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def claim(out: Path, fresh: bool, options: Row) -> StepFolder:
    """The folder `out`, new or started with the same options. Raises UserError for any other."""
    try:
        if fresh and out.exists():
            set_aside(out)
        if out.exists() and not (out / "step.json").exists() and any(out.iterdir()):
            raise UserError(f"--out={out}: holds other files; give an empty or new folder")
        folder = StepFolder(out)
        folder.claim(options)
    except OSError as error:
        raise UserError(
            f"--out={out}: cannot be made or written ({error.strerror}); give another folder"
        ) from error
    return folder


def ask_all(
    name: str,
    folder: StepFolder,
    total: int,
    work: Callable[[Tally, int], Awaitable[Outcome]],
    args: argparse.Namespace,
) -> Counts:
    """Do the units that the folder's journal lacks. Raises RunError unless all are finished."""

    key = args.api_key or os.environ.get(KEY_VARIABLE) or NO_KEY
    endpoint = Endpoint(args.base_url, api_key=key)
    ask = Asking(name, folder, endpoint, args.concurrency, tells_load=False)
    counts, _ = do_all(ask, total, work)
    if counts.failed:
        raise RunError(
            f"{counts.failed} of {total} {name} failed; the same command tries them again"
        )
    return counts
