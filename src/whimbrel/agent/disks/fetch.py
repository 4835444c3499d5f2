"""The two places that a base image comes from: the image store, and the server's source host."""

from __future__ import annotations

import os
import select
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Generator
from urllib.parse import urlsplit

from whimbrel.agent.disks.frames import NOT_HERE
from whimbrel.agent.disks.refusals import explain
from whimbrel.domain.errors import StepError
from whimbrel.migration.messages import Place

SILENCE = 15.0
"""Seconds without a byte after which a place is given up."""

BLOCK = 1 << 20

Blocks = Generator[bytes, None, None]
"""An image in pieces; closing it ends what brings it."""


def from_store(url: str, ca_file: str | None) -> Blocks:
    """Read from the image store; raise StepError with the reason, without the ticket, which is a secret.

    A store at an https address is known by an authority in `ca_file`, or (None) by one that this machine trusts.
    """
    parts = urlsplit(url)
    public = f"{parts.scheme}://{parts.netloc}{parts.path}"
    try:
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
        # The image store is named in the order; a proxy of the agent's environment has no part in it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)
        with opener.open(url, timeout=SILENCE) as reply:
            while block := reply.read(BLOCK):
                yield block
    except urllib.error.HTTPError as error:
        raise StepError(f"{public} answered {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise StepError(f"{public} sent nothing for {SILENCE:g} s") from error
    except OSError as error:  # URLError is one too
        raise StepError(f"{public} cannot be reached: {getattr(error, 'reason', error)}") from error


def from_host(argv: list[str], source: Place, here: Place) -> Blocks:
    """Read what a command on the source writes; raise StepError with the reason."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert child.stdout and child.stderr
    try:
        poll = select.poll()
        poll.register(child.stdout, select.POLLIN)
        while True:
            if not poll.poll(SILENCE * 1000):
                raise StepError(f"{source.host} sent nothing for {SILENCE:g} s")
            block = os.read(child.stdout.fileno(), BLOCK)
            if not block:
                break
            yield block
        complaints = child.stderr.read()
        code = child.wait(SILENCE)
        if code == NOT_HERE:
            raise StepError(f"{source.host} does not hold it")
        if code:
            raise StepError(explain(complaints.decode(errors="replace"), here, source).rstrip("."))
    except subprocess.TimeoutExpired as error:
        raise StepError(f"the channel from {source.host} does not close") from error
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()
