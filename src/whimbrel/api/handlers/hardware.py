"""Which machine an image or a flavor may ask for: what no host here makes is refused, and not left out in silence.

A guest without its firmware does not boot; one whose TPM or keys stayed at the host that it left has lost its secrets.
"""

from __future__ import annotations

from collections.abc import Mapping

from whimbrel.domain.errors import Invalid
from whimbrel.domain.tpm import VERSION, WORDS, spec_of, tpm_of

PLAIN: dict[str, frozenset[str]] = {
    "hw_boot_mode": frozenset({"bios"}),
    "hw_ephemeral_encryption": frozenset({"false"}),
    "hw_firmware_stateless": frozenset({"false"}),
    "hw_firmware_type": frozenset({"bios"}),
    "hw_machine_type": frozenset(),
    "hw_mem_encryption": frozenset({"false"}),
    "os_secure_boot": frozenset({"disabled", "optional"}),
}
"""What changes the machine, and with which values it is the one that every server has."""

UEFI = "hw_firmware_type"
"""What an image may ask for, and a flavor may not: firmware is part of what the image is made for."""
ABSENT = "hw_tpm_"
"""What else may be said of a TPM than its version and model is not supported."""


def refuse_special(what: str, asked: Mapping[str, object]) -> None:
    """Raise Invalid if `what` (an image, a flavor) asks for special hardware by its properties or extra specs.

    An extra spec is written as `hw:x` where an image's property is `hw_x`.
    """
    for name, value in asked.items():
        known = name.replace(":", "_", 1)
        plain = PLAIN.get(known)
        if (name == UEFI and str(value).lower() == "uefi") or known in WORDS:
            continue
        if (plain is not None and str(value).lower() not in plain) or known.startswith(ABSENT):
            raise Invalid(
                f"{what} asks for {name}={value!s:.80}, which is not supported: servers have a BIOS or, where "
                f"the image says {UEFI}=uefi, UEFI without Secure Boot, the machine type of their host's settings and, "
                f"where image or flavor say {WORDS[0]}={VERSION}, a TPM. Use one without it."
            )


def refuse_lost_tpm(properties: Mapping[str, object], old: Mapping[str, object], new: Mapping[str, object]) -> None:
    """Raise Invalid if a server that has a TPM by its image and its flavor's extra specs would have none by the new."""
    if tpm_of(properties, new) is None and tpm_of(properties, old) is not None:
        raise Invalid(
            f"The flavor has no TPM, and what the server keeps in its own would be lost. Use one with the extra spec "
            f"{spec_of(WORDS[0])}={VERSION}."
        )
