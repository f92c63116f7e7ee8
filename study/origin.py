"""Where a run comes from: who ran which commit."""

import getpass
import os
import subprocess
from pathlib import Path


def source_tags() -> dict[str, str]:
    """Tags of a run; MLflow's UI shows those that it names itself."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    tags = {"mlflow.user": user, "mlflow.source.name": "deepfake-study"}
    if commit := git_commit():
        tags |= {"mlflow.source.git.commit": commit, "git_commit": commit}
    return tags


def git_commit() -> str | None:
    """The commit this code is at, with -dirty behind it if it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    folder = Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or installed without its history
        return None
    return found.stdout.strip()
