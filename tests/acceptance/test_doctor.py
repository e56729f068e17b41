"""What `doctor` says of a machine."""

from __future__ import annotations

from .command_line import Place


def test_a_machine_is_described_from_cores_to_database(place: Place) -> None:
    said = place.succeed("doctor")
    for subject in ("versions", "cores", "memory", "disk", "GPUs", "precision", "data", "database"):
        assert f"{subject}" in said
    assert "will be made by the first start" in said
    assert "LACKS" not in said


def test_a_database_that_cannot_be_reached_is_lacking_and_its_password_stays_secret(
    place: Place,
) -> None:
    url = "postgresql+psycopg://somebody:hushhush@127.0.0.1:1/nothing"
    done = place.run("doctor", "--storage", url)
    assert done.code == 1
    assert "LACKS  database" in done.out
    assert "Connection refused" in done.out
    assert "hushhush" not in done.both
    assert "Traceback" not in done.both
