"""What several tests share: an environment without network, and one run of the solved labs by `make run`."""

import os
import subprocess

import pytest

from shared import notebooks

CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(scope="session")
def no_network(tmp_path_factory) -> dict[str, str]:
    """An environment in which any request to a hub fails at once, with empty caches."""
    proxies = {name: CLOSED for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    home = str(tmp_path_factory.mktemp("hf"))
    return {**os.environ, **proxies, "HF_ENDPOINT": CLOSED, "HF_HOME": home, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def made(no_network) -> str:
    """What `make run` printed."""
    # Under `make test` make would add lines of its own about folders.
    done = subprocess.run(
        ["make", "--no-print-directory", "run"], cwd=notebooks.ROOT, env=no_network, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
