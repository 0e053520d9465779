"""Generates protos/gen from protos/comity; `--check` only says whether what is committed is fresh.

buf compiles the descriptors (offline, with lint's own parser), grpc_tools' protoc turns them into
code. A protoc on PATH is never used: its version would decide what is committed.
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent
COMMITTED = PROTOS / "gen"


def main() -> int:
    """Generate, or with --check compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with protos/gen, write nothing")
    if not parser.parse_args().check:
        shutil.rmtree(COMMITTED, ignore_errors=True)
        generate(COMMITTED)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder), COMMITTED)
    for path in stale:
        print(f"{path}: not what the protos give; run `make protos` and commit the result", file=sys.stderr)
    return 1 if stale else 0


def generate(target: Path) -> None:
    """Write messages, stubs and their types for every proto into *target*."""
    target.mkdir(parents=True, exist_ok=True)
    bin_folder = Path(sys.executable).parent
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "comity").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        subprocess.run([bin_folder / "buf", "build", "-o", image], cwd=PROTOS.parent, check=True)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"--descriptor_set_in={image}",
                f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
                f"--python_out={target}",
                f"--grpc_python_out={target}",
                f"--mypy_out=quiet:{target}",
                f"--mypy_grpc_out=quiet,only_async:{target}",
                *sources,
            ],
            check=True,
        )
    for package in [target / "comity", *(path for path in (target / "comity").rglob("*") if path.is_dir())]:
        (package / "__init__.py").touch()
    (target / "comity" / "py.typed").touch()


def differences(fresh: Path, committed: Path) -> list[str]:
    """Relative paths that are missing, left over or different in *committed*."""
    names = {str(p.relative_to(root)) for root in (fresh, committed) for p in root.rglob("*") if p.is_file()}
    names = {name for name in names if "__pycache__" not in name}
    return sorted(
        name
        for name in names
        if not (fresh / name).is_file()
        or not (committed / name).is_file()
        or not filecmp.cmp(fresh / name, committed / name, shallow=False)
    )


if __name__ == "__main__":
    sys.exit(main())
