"""Every check there is, in the order of their cost: `python -m tests`. Arguments go to pytest."""

import subprocess
import sys
import time

# Many tests wait for processes to start and for leases to end: side by side they take half the time. A file stays
# together, since its tests may share servers. Named tests run one after another, as whoever names them expects.
_TESTS = sys.argv[1:] or ["--numprocesses=3", "--dist=loadfile"]

CHECKS = (
    ("style", ["ruff", "check", "."]),
    ("types", ["mypy"]),
    ("direction of imports", ["importlinter.cli"]),
    ("tests", ["pytest", *_TESTS]),
)


def main() -> int:
    """Run the checks; all of them, even after one has failed."""
    failed = []
    for name, (module, *arguments) in CHECKS:
        began = time.monotonic()
        print(f"\n== {name}", flush=True)
        command = [sys.executable, "-m", module, *arguments]
        if module == "importlinter.cli":
            command = [
                sys.executable,
                "-c",
                "from importlinter.cli import lint_imports_command as run; run()",
            ]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
