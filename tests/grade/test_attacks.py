"""The attack suite: no attack gains a point, none hurts anybody, honest work is kept."""

import http.server
import os
import threading

import pytest
from grade.attacks import ATTACKS
from grade.cells import program_of

from minids3.course.hints import source_of
from minids3.course.registry import get
from minids3.grade.judging.grading import Grader
from minids3.isolation import sandbox
from minids3.isolation.sandbox import Limits

pytestmark = pytest.mark.skipif(bool(sandbox.missing()), reason="no isolation on this machine")
LIMITS = Limits(call_seconds=2, load_seconds=6, exercise_seconds=8, cpu_seconds=8, restarts=1)
SECRET = "the hidden tests"


@pytest.fixture(scope="module")
def grader():
    made = Grader(limits=LIMITS)
    yield made
    made.close()


@pytest.fixture
def place(tmp_path):
    """A file that must not be read and one that must not change."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "victim.txt").write_text("grades")
    for path in tmp_path.iterdir():
        path.chmod(0o666)  # not even what everybody may write
    return tmp_path


@pytest.fixture(scope="module")
def server():
    """A web server that notes every visit."""
    visits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    made = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made.server_port, visits
    made.shutdown()


def test_there_are_enough():
    assert len({a.name for a in ATTACKS}) == len(ATTACKS) >= 30


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_attack_gains_nothing(attack, grader, place, server):
    port, visits = server
    victim, secret = place / "victim.txt", place / "secret.txt"
    before = sorted(p.name for p in place.iterdir()), os.stat(victim).st_mode, victim.read_text()
    code = attack.code.format(secret=str(secret), victim=str(victim), parent=os.getpid(), port=port)
    exercise = get(attack.exercise)
    result = grader.exercise(program_of(exercise, code), seed=5)
    worth = grader.exercise(program_of(exercise, attack.plain), 5).points if attack.plain else 0
    assert worth < exercise.points
    assert result.points <= worth, [(i.label, i.status) for i in result.items]
    allowed = {"failed", "forbidden", "stub"} | ({"partial"} if attack.plain else set())
    assert result.status in allowed, result.notes
    assert (result.status == "forbidden") == attack.forbidden, result.notes
    if attack.forbidden:
        assert result.needs_human
    after = sorted(p.name for p in place.iterdir()), os.stat(victim).st_mode, victim.read_text()
    assert after == before
    assert visits == []
    assert SECRET not in str(result)
    honest = get("mla-choose")
    kept = grader.exercise(program_of(honest, source_of(honest.id)), seed=5)
    assert (kept.status, kept.points) == ("passed", kept.max_points), kept.notes


def test_nothing_is_left_behind(grader):
    left = [p for p in grader._zygote.home.iterdir() if p.name.startswith("tmp")]
    assert left == []
