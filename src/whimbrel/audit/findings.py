"""What an audit can find: each kind with one sentence of what it means, and a finding with its remedy."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """Every kind of finding. `means` says it in a sentence; `drift` is False for what is worth knowing, but right."""

    means: str
    drift: bool

    def __new__(cls, value: str, means: str, drift: bool = True) -> Kind:
        """Make a kind with its sentence."""
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.means = means
        kind.drift = drift
        return kind

    NOT_LOOKED_AT = "not_looked_at", "A host, or its hypervisor, did not answer: nothing is known of it."
    TWO_RUNNERS = "two_runners", "More than one host runs the server."
    RUNS_WITHOUT_GRANT = "runs_without_grant", "A guest runs on a host that has no right to run it."
    PROCESS_WITHOUT_DOMAIN = (
        "process_without_domain",
        "A QEMU process runs a guest that the hypervisor does not know to run.",
    )
    WRONG_HOST = "wrong_host", "The server's files are live on another host than the books say."
    MISSING_FILES = "missing_files", "The host that the server belongs to has no live directory of it."
    MISSING_DOMAIN = "missing_domain", "The server's host has its files, but its hypervisor does not know the guest."
    MISSING_UNDO_COPY = "missing_undo_copy", "The undo window is open, and the copy to go back to is gone."
    STOPPED_GUEST = "stopped_guest", "The books say that the guest runs, and it is stopped."
    RUNNING_GUEST = "running_guest", "The books say that the guest is stopped, and it runs."
    TWO_COPIES = "two_copies", "A second host has a live directory of the server."
    ORPHAN_DOMAIN = "orphan_domain", "A hypervisor knows a stopped guest that does not belong to its host."
    ORPHAN_FILE = "orphan_file", "A host has files of a server that nothing in the books accounts for."
    LEFTOVER = "leftover", "A crash left a file half made or half removed."
    LEFTOVER_PROCESS = "leftover_process", "A process of a step runs on, and no migration is at work there."
    UNBALANCED_CLAIM = "unbalanced_claim", "The room that is claimed is not the room that is used."
    UNPAID_DEBT = "unpaid_debt", "A host still owes a clean-up."
    NEEDS_FENCE = "needs_fence", "A migration waits for the proof that a silent host does not run the guest."
    LEDGER_LOST = (
        "ledger_lost",
        "A host's ledger has no grant, of whatever age, for servers that live there: it is a new one.",
    )
    BOOKS_BEHIND = "books_behind", "A host has obeyed orders that the database does not know: it is an older copy."
    DEAD_LETTERS = "dead_letters", "Messages that no process could take wait to be looked at."
    OLD_WINDOW = "old_window", "An undo window without a deadline has been open for long.", False
    OVERCOMMITTED = "overcommitted", "More room is claimed on a host than it may give.", False
    FOREIGN_DOMAIN = "foreign_domain", "A hypervisor knows a guest that is not Whimbrel's.", False
    STRANGE_FILE = "strange_file", "The instances directory has a name that is not Whimbrel's.", False


class Mend(enum.StrEnum):
    """What a repair may do; each is proved safe in docs/operate/audit.md."""

    DISCARD_INCOMING = "discard_incoming"
    RETIRE_SEALED = "retire_sealed"
    REMOVE_DELETED = "remove_deleted"
    STOP_STRAY = "stop_stray"
    GIVE_CLAIM_BACK = "give_claim_back"
    SET_CLAIM = "set_claim"


@dataclass(frozen=True)
class Repair:
    """What would mend a finding, and the server's numbers at the look: if they have changed, nothing is done.

    `attempt` names the directory, `claim` the row (None: there is none yet).
    """

    mend: Mend
    host: str
    server: str
    epoch: int
    number: int
    attempt: str = ""
    claim: int | None = None


Identity = tuple[str, str | None, str | None, str]
"""What makes a finding the same one in another look: kind, host, server, and what of it."""


@dataclass(frozen=True)
class Finding:
    """One difference. `what` tells apart several of a kind on one server and host: a directory, a claim, a debt.

    `detail` is what was seen, `remedy` one sentence with the command; `name` is what people call the server.
    """

    kind: Kind
    host: str | None
    server: str | None
    detail: str
    remedy: str
    name: str = ""
    what: str = ""
    repair: Repair | None = None

    @property
    def identity(self) -> Identity:
        """What it is recognised by."""
        return (self.kind, self.host, self.server, self.what)
