"""What OpenSSH's last words mean, said with both hosts' names and the remedy."""

from __future__ import annotations

import re

from whimbrel.migration.messages import Place

_MEANINGS = (
    (
        r"host key.*has changed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {target} ({address}) is not the one that {source} knows. If {target} was installed anew, "
        "replace its line in the known_hosts file of {source}; if not, someone stands in between",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "{source} does not know the host key of {target} ({address}). Add it to the known_hosts file of {source}",
    ),
    (
        r"Permission denied|Too many authentication failures|Authentication refused",
        "{target} ({address}) refused the key of {source}. Add {source}'s public key to authorized_keys on {target}, "
        "with whimbrel-receive as its forced command",
    ),
    (
        r"Connection refused",
        "nothing listens on {target} ({address}). Start sshd there, or check the address and port",
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
        "{target} ({address}) has no whimbrel-receive. Install whimbrel there and name it in the forced command "
        "of {source}'s key",
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
