"""Work on behalf of an HTTP caller ends when the caller goes away."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")


class CallerGoneError(Exception):
    """The connection was closed before the answer was ready; nobody will read one."""


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, cancelled when the caller (its body is read) disconnects first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, what comes is the disconnect
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    if task.cancelled():
        raise CallerGoneError
    return task.result()
