"""Fetches the libraries that the page carries, from the npm registry, and notes their versions.

    python leaderboard/page/vendor/renew.py [datatables.net@3 chart.js@4]

Needs npm. Only the built files and licences are kept; nothing of a package is run.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("datatables.net@3", "chart.js@4")
FILES = {  # package -> its file -> ours
    "datatables.net": {"js/dataTables.min.js": "dataTables.min.js", "License.txt": "dataTables.LICENSE.txt"},
    "chart.js": {"dist/chart.umd.min.js": "chart.umd.min.js", "LICENSE.md": "chart.LICENSE.txt"},
}


def renew(package: str) -> dict[str, object]:
    """Fetch one package (NAME or NAME@VERSION) into this folder; returns what versions.json says of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, package]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as tar:
            about = json.loads(_read(tar, "package.json"))
            if about["license"] != "MIT":
                raise SystemExit(f"{package} is under {about['license']} now; think before it is carried")
            hashes = {}
            for name, ours in FILES[about["name"]].items():
                data = _read(tar, name)
                if ours.endswith(".js"):  # the map of its source is not carried, so that no browser asks for it
                    lines = data.splitlines(keepends=True)
                    data = b"".join(line for line in lines if not line.startswith(b"//# sourceMappingURL="))
                (HERE / ours).write_bytes(data)
                hashes[ours] = hashlib.sha256(data).hexdigest()
    return {"name": about["name"], "version": about["version"], "license": about["license"], "sha256": hashes}


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(f"package/{name}")
    if file is None:
        raise SystemExit(f"no {name} in the package")
    return file.read()


if __name__ == "__main__":
    found = [renew(package) for package in sys.argv[1:] or PACKAGES]
    (HERE / "versions.json").write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join(f"{one['name']} {one['version']}" for one in found))
