"""Fifty kills of a server that three clients write to: ``tests.faults.chaos``; ``make chaos`` does a thousand."""

from pathlib import Path

import pytest
from tests.faults.chaos import Chaos, Failed


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_in_fifty_kills(tmp_path: Path) -> None:
    tally = Chaos(tmp_path, seed=0, epoch_kills=25).run(50)
    print(tally)
    assert tally.kills.total() >= 50
    assert sum(count for kind, count in tally.kills.items() if "." in kind) >= 10, "too few at named steps"
    assert tally.client_kills
    assert tally.acknowledged_rows > 1000


@pytest.mark.timeout(120)
def test_a_disk_that_forgets_a_write_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="run it again"):
        Chaos(tmp_path, seed=0, epoch_kills=5, disk="tests.faults.wrong_disks:ForgetfulDisk").run(20)
