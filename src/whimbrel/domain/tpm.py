"""Whether a server has a TPM, and which: what its image (`hw_tpm_version`) and its flavor (`hw:tpm_version`) say."""

from __future__ import annotations

from collections.abc import Mapping

from whimbrel.domain.errors import Invalid

VERSION = "2.0"
MODELS = ("tpm-crb", "tpm-tis")
"""How a guest talks to its TPM; the first is what it gets when nothing is said."""
WORDS = ("hw_tpm_version", "hw_tpm_model")


def tpm_of(properties: Mapping[str, object], extra_specs: Mapping[str, object]) -> str | None:
    """Return the model of the TPM that image and flavor ask for together; None for a server without one.

    Raise Invalid when they ask for one that no host makes, or do not agree.
    """
    version, model = (_said(word, properties, extra_specs) for word in WORDS)
    if version is None and model is None:
        return None
    if version != VERSION:
        asked = f"hw_tpm_model={model:.80} and no version" if version is None else f"hw_tpm_version={version:.80}"
        raise Invalid(
            f"Image and flavor ask for {asked}, which is not supported: a TPM is had by hw_tpm_version={VERSION} on "
            f"the image or {spec_of(WORDS[0])}={VERSION} on the flavor."
        )
    if model is not None and model not in MODELS:
        raise Invalid(
            f"Image and flavor ask for hw_tpm_model={model:.80}, which is not supported: it is one of "
            f"{', '.join(MODELS)}."
        )
    return model or MODELS[0]


def _said(word: str, properties: Mapping[str, object], extra_specs: Mapping[str, object]) -> str | None:
    found = {str(of[key]).lower() for of, key in ((properties, word), (extra_specs, spec_of(word))) if key in of}
    if len(found) > 1:
        raise Invalid(
            f"The image says {word}={properties[word]!s:.80} and the flavor {extra_specs[spec_of(word)]!s:.80}, which "
            f"is not supported: let only one of them say it."
        )
    return next(iter(found), None)


def spec_of(word: str) -> str:
    """Return how a flavor's extra specs write what an image's properties write so."""
    return word.replace("_", ":", 1)
