"""What OpenSSH's last words mean, said with both hosts' names and the remedy."""

from __future__ import annotations

import re

from whimbrel.migration.messages import Place

_MEANINGS = (
    (
        r"host key.*has changed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {target} ({address}) is not the one that {target} told of itself. If it was enrolled anew, "
        "restart its sshd; if not, someone stands in between",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "the host key of {target} ({address}) is not the one that {target} told of itself. If it was enrolled anew, "
        "restart its sshd; if not, someone stands in between",
    ),
    (
        r"Permission denied|Too many authentication failures|Authentication refused",
        "{target} ({address}) refused the pass of {source}. Check that channel_authorities on {target} names this "
        "controller's key (then run `whimbrel host enroll` there), the clocks of both, and the log of sshd there",
    ),
    (
        r"Connection refused",
        "nothing listens on {target} ({address}). Start the sshd of its channels there, or check the address and port",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "{source} cannot resolve the address {address} of {target}. Check `address` in {target}'s settings",
    ),
    (
        r"No route to host|Network is unreachable|timed out|not responding",
        "{source} cannot reach {target} ({address}). Check the network between the two hosts",
    ),
    (
        r"command not found|not found$|No module named",
        "{target} ({address}) has no whimbrel-receive. Install whimbrel there and run `whimbrel host enroll`",
    ),
)


def explain(complaints: str, source: Place, target: Place) -> str:
    """Return one sentence for a person: what broke between which hosts, the remedy, and ssh's own words."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip(" \r@")]
    words = lines[-1].rstrip(".") if lines else "it ended without a word"
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, complaints, re.IGNORECASE):
            said = meaning.format(source=source.host, target=target.host, address=target.address)
            return f"No channel from {source.host} to {target.host}: {said} (ssh: {words})."
    return f"The channel from {source.host} to {target.host} ({target.address}) broke: {words}."
