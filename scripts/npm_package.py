"""Fetch axe-core, with which the tests of the page check that it is accessible: `python scripts/npm_package.py FILE`.

Packages of the npm registry are fetched in one exact version and checked against their digest: this one, and
onnxruntime-web by `build_site.py`. Neither is in the wheel.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, in one version.

    Attributes:
        name: Its name.
        version: Its exact version.
        sha512: The digest of its archive, in base64, as the registry states it.
    """

    name: str
    version: str
    sha512: str

    @property
    def url(self) -> str:
        """Address of its archive."""
        return f"https://registry.npmjs.org/{self.name}/-/{self.name}-{self.version}.tgz"

    def archive(self, path: Path | None = None) -> tarfile.TarFile:
        """Return its archive, from a file or the registry.

        Raises:
            SystemExit: The registry does not answer, or the archive is another one.
        """
        if path is None:
            try:
                with urllib.request.urlopen(self.url, timeout=60) as response:
                    content: bytes = response.read()
            except (urllib.error.URLError, TimeoutError) as error:
                raise SystemExit(f"{self.url} cannot be fetched: {error}") from error
        else:
            content = path.read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != self.sha512:
            raise SystemExit(f"the archive does not have the digest of {self.name} {self.version}")
        return tarfile.open(fileobj=io.BytesIO(content))


AXE = NpmPackage(
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return a file of a package."""
    member = archive.extractfile(f"package/{name}")
    assert member is not None
    return member.read()


def main() -> None:
    """Write axe-core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    arguments.file.write_bytes(read_member(AXE.archive(), "axe.min.js"))


if __name__ == "__main__":
    main()
