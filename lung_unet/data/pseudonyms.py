"""Pseudonyms of series: keyed hashes in place of their UIDs, the same wherever the key is the same.

HMAC-SHA-256 (RFC 2104) of the UID. Without the key nobody can compute a pseudonym of a UID that
they guess, as they could of a plain hash.
"""

import dataclasses
import hmac
import pathlib
import re

from lung_unet.errors import InputError

UID = r"[0-9]+(?:\.[0-9]+){2,}"
MIN_BYTES = 16  # as strong as the pseudonyms, which have 128 bits


@dataclasses.dataclass(frozen=True)
class Pseudonym:
    """What stands for a series.

    `series_uid` is a UID of the form 2.25.<number> (DICOM PS3.5, B.2), valid wherever one is
    expected. The salts are never written: hashed with one, a description of the series' files
    confirms no guess. `salt` is the series' own, `common_salt` that of all series of a key.
    """

    series_uid: str
    salt: bytes
    common_salt: bytes

    def hash(self, text: str) -> str:
        """A hash of text about the series, that only the key's holder can compute."""
        return hmac.digest(self.salt, text.encode(), "sha256").hex()

    def common_hash(self, text: str) -> str:
        """The same, but equal for two series of which the text is."""
        return hmac.digest(self.common_salt, text.encode(), "sha256").hex()


@dataclasses.dataclass(frozen=True)
class Key:
    """A secret, and the pseudonyms that it makes."""

    secret: bytes = dataclasses.field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell keys apart, and nothing else about them."""
        return self._digest("fingerprint of the key").hex()[:16]

    def pseudonym(self, series_uid: str) -> Pseudonym:
        """The pseudonym of a series UID."""
        digest = self._digest(series_uid)
        common = self._digest("hashes that series share")
        return Pseudonym(f"2.25.{int.from_bytes(digest[:16])}", digest[16:], common)

    def replace_uids(self, text: str) -> str:
        """The text with pseudonyms in place of what looks like a UID."""
        return re.sub(UID, lambda found: self.pseudonym(found[0]).series_uid, text)

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self.secret, text.encode(), "sha256")


def read_key(path: str | pathlib.Path) -> Key:
    """The key that is all bytes of a file.

    Raises:
      InputError: it cannot be read, or is too short to be a secret.
    """
    try:
        secret = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(secret) < MIN_BYTES:
        raise InputError(
            f"{path}: has {len(secret)} bytes, a key needs {MIN_BYTES}; "
            f"make one with: head -c 32 /dev/urandom > {path}"
        )
    return Key(secret)
