"""The command line: what it prints, what it loads, how it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from flows import job, runbook
from flows.cli import main
from flows.root import find_root
from tasks.kd.digests import write_json
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.evaluation import Metrics
from tasks.kd.errors import ParamsError, StageError
from tasks.registry import open_registry
from tests.flows.conftest import IGNORED, MODEL, Project
from tests.makers.documents import change, make_latency

pytestmark = pytest.mark.filterwarnings(IGNORED)

COMMANDS = (
    "cache",
    "check",
    "doctor",
    "lineage",
    "new",
    "plan",
    "promote",
    "rollback",
    "run",
    "schedule",
    "status",
    "ui",
    "upgrade",
)
HEAVY = ("dvc", "mlflow", "numpy", "pandas", "prefect", "pydantic", "rich", "torch", "transformers")

Ask = Callable[..., Result]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run `stillhouse` in a repository."""

    def run(project: Project, *arguments: str) -> Result:
        monkeypatch.chdir(project.root)
        return CliRunner().invoke(main, arguments)

    return run


def read(result: Result, code: int = 0) -> Any:
    """The JSON on standard output, which must hold nothing else."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def loaded_by(code: str, folder: Path, root: Path) -> set[str]:
    """Which heavy libraries a program loads."""
    program = f"import sys; sys.path.insert(0, {str(root)!r})\n{code}\n"
    program += f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


# --- help ----------------------------------------------------------------------------------------


def test_every_command_has_help_that_ends_with_its_own_example() -> None:
    assert isinstance(main, click.Group)
    assert sorted(main.commands) == list(COMMANDS)
    for name in COMMANDS:
        said = CliRunner().invoke(main, [name, "--help"]).output
        assert f"Example:  stillhouse {name}" in said.rstrip().splitlines()[-1], name
        first_line = said.splitlines()[2].strip()
        assert first_line.endswith("."), f"{name}: its first line is its line in the list"
    listed = CliRunner().invoke(main, ["--help"]).output.partition("Commands:")[2]
    assert "..." not in listed  # no first line was cut


def test_help_loads_nothing_heavy(tmp_path: Path, root: Path) -> None:
    code = f"""
from click.testing import CliRunner
from flows.cli import main
for name in {COMMANDS!r}:
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
"""
    assert loaded_by(code, tmp_path, root) == set()


# --- run -----------------------------------------------------------------------------------------


def test_an_idle_run_shows_the_result_and_loads_no_prefect(done: Project, root: Path) -> None:
    before = done.ran()
    code = "from flows.cli import main; main(['run', 'tiny'], standalone_mode=False)"
    loaded = loaded_by(code, done.root, root)
    assert {"mlflow", "dvc"} <= loaded
    assert not loaded & {"prefect", "torch", "transformers"}
    assert done.ran() == before


def test_run_tells_people_the_result_the_rules_and_the_report(done: Project, ask: Ask) -> None:
    result = ask(done, "run", "tiny")
    assert result.exit_code == 0
    for part in (
        "macro F1",
        "98.00 % [96.00, 100.00]",
        "retention",
        "nothing to do",
        "report.html",
    ):
        assert part in result.stdout
    assert "models:/triage/1: champion." in result.stdout


def test_run_as_json_holds_figures_decision_and_report(done: Project, ask: Ask) -> None:
    found = read(ask(done, "run", "tiny", "--json"))
    assert found["idle"] is True
    assert found["version"] == f"models:/{MODEL}/1"
    assert found["decision"]["verdict"] == "promote"
    assert found["metrics"]["student"]["accuracy"]["value"] == 0.9
    assert Path(found["report"]).is_file()


def test_a_refusal_exits_0_unless_asked_to_fail(
    done: Project, ask: Ask, monkeypatch: pytest.MonkeyPatch, prefect_url: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    done.change("gate", max_size_mib=0.0001)
    ran = done.ran()
    result = ask(done, "run", "tiny")
    assert result.exit_code == 0, result.output
    assert "REFUSED. The champion stays as it is" in result.stdout
    assert "flows/RUNBOOK.md#the-gate-refused" in result.stdout
    assert done.ran() == ran  # no stage reads the gate's limits: only the decision is new
    assert ask(done, "run", "tiny", "--fail-on-refusal").exit_code == 3
    again = read(ask(done, "run", "tiny", "--json"))
    assert (again["idle"], again["decision"]["verdict"]) == (True, "refuse")
    assert done.champion() == 1


def test_a_promotion_that_was_cut_off_is_not_called_done(done: Project) -> None:
    found = job.find_settled(job.read_job("tiny", done.root))
    assert found is not None
    client = open_registry(done.root).store.client
    client.delete_model_version_tag(MODEL, "1", "promoted_at")
    assert job.find_settled(job.read_job("tiny", done.root)) is None
    client.delete_registered_model_alias(MODEL, "champion")
    assert job.find_settled(job.read_job("tiny", done.root)) is None


def test_a_latency_of_a_busy_hour_is_measured_again_by_the_command_that_the_refusal_names(
    done: Project, ask: Ask, monkeypatch: pytest.MonkeyPatch, prefect_url: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    measured = done.root / "control" / "better" / "evaluate_student"
    quiet = Metrics.read(measured)
    change(quiet, student=change(quiet.student, latency_ms=make_latency(40.0))).write(measured)
    done.retrain("better")
    found = read(ask(done, "run", "tiny", "--json"))
    (rule,) = (rule for rule in found["decision"]["rules"] if not rule["passed"])
    assert rule["name"] == "latency"
    quiet.write(measured)
    assert read(ask(done, "run", "tiny", "--json"))["decision"] == found["decision"]  # it stands
    named = re.search(r"measure again: dvc (repro [^,]+), then stillhouse (run \w+)\.", str(rule))
    assert named is not None
    subprocess.run(
        [sys.executable, "-m", "dvc", *named[1].split()],
        cwd=done.root,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    again = read(ask(done, *named[2].split(), "--json"))
    assert (again["version"], again["decision"]["verdict"]) == (f"models:/{MODEL}/3", "promote")
    assert done.champion() == 3
    assert done.ran().count("train_student") == 2


# --- check, plan, status -------------------------------------------------------------------------


def test_check_lists_the_faults_of_all_recipes_with_file_and_line(
    project: Project, ask: Ask
) -> None:
    assert read(ask(project, "check", "--json")) == {"valid": ["tiny"]}
    project.change("gate", min_retention=2, surprise=1)
    (project.root / "params" / "other.yaml").write_text("description: [")
    result = ask(project, "check")
    assert (result.exit_code, result.stdout) == (2, "")
    for part in ("min_retention", "surprise: unknown field", "other.yaml:1: not valid YAML"):
        assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_check_compares_the_list_of_recipes_with_their_sources(project: Project, ask: Ask) -> None:
    names = ("train", "test", "teacher", "student", "more_teachers")
    listed = json.dumps({"recipes": {"tiny": dict.fromkeys(names, "data/x.csv")}})
    (project.root / "params" / "recipes.yaml").write_text(listed)
    result = ask(project, "check")
    assert result.exit_code == 2
    assert "recipe tiny is not listed as its sources are" in result.stderr


def test_a_name_that_dvc_would_run_in_a_shell_is_refused(project: Project, ask: Ask) -> None:
    entry = '{"train": "a", "test": "a", "teacher": "a"}'
    evil = f'{{"recipes": {{"tiny; touch INJECTED": {entry}}}}}'
    (project.root / "params" / "recipes.yaml").write_text(evil)
    for command in (["check"], ["plan", "tiny"], ["run", "tiny"], ["status"]):
        result = ask(project, *command)
        assert result.exit_code == 2, command
        assert "can't be named" in result.stderr
    assert not (project.root / "INJECTED").exists()


def test_plan_gives_each_stage_its_reasons(done: Project, ask: Ask) -> None:
    done.retrain("better")
    stages = {
        one["stage"]: one["reasons"] for one in read(ask(done, "plan", "tiny", "--json"))["stages"]
    }
    assert stages["cache_teacher"] == []
    assert "train_student.optimizer.seed changed" in stages["train_student"][0]
    assert stages["export_student"] == ["upstream train_student runs"]
    said = ask(done, "plan", str(done.recipe)).stdout
    assert "up to date" in said
    assert "Teacher cache: about" in said


def test_plan_says_nothing_of_a_cache_of_data_that_will_be_others(
    project: Project, ask: Ask
) -> None:
    prepared = project.root / "artifacts" / "tiny" / "prepare_data"
    prepared.mkdir(parents=True)
    write_json(prepared / DataCard.FILE, {"labels": ["of", "another", "version"]})
    found = read(ask(project, "plan", "tiny", "--json"))
    assert found["cache_bytes"] is None
    assert found["stages"][1]["reasons"]


def test_status_shows_stages_and_champion_also_without_mlflow(
    done: Project, ask: Ask, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(ask(done, "status", "--json"))["recipes"][0]
    assert (found["recipe"], found["champion"]["version"], found["fault"]) == ("tiny", 1, None)
    assert not any(stage["reasons"] for stage in found["stages"])
    assert "up to date" in ask(done, "status").stdout
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = ask(done, "status")
    assert result.exit_code == 0
    assert "Models unknown: MLflow does not answer" in result.stdout


def test_status_of_a_fresh_copy_makes_no_database(project: Project, ask: Ask) -> None:
    shutil.rmtree(project.root / ".mlflow")
    found = read(ask(project, "status", "--json"))
    assert (found["registry_fault"], found["recipes"][0]["champion"]) == (None, None)
    assert found["recipes"][0]["stages"][0]["reasons"]
    assert not (project.root / ".mlflow").exists()


def test_status_asks_a_registry_elsewhere_also_in_a_fresh_copy(
    project: Project, ask: Ask, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project.root / ".mlflow")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = read(ask(project, "status", "--json"))
    assert found["registry"] == f"http://127.0.0.1:{free_port}"
    assert found["registry_fault"] == f"MLflow does not answer: http://127.0.0.1:{free_port}."


def test_status_shows_a_broken_recipe_beside_the_others(done: Project, ask: Ask) -> None:
    done.change("gate", surprise=1)
    found = read(ask(done, "status", "--json"))["recipes"][0]
    assert "surprise: unknown field" in found["fault"]


# --- promote, roll back, lineage -----------------------------------------------------------------


def test_promote_goes_through_the_gate_and_rollback_goes_back(
    done: Project, ask: Ask, monkeypatch: pytest.MonkeyPatch, prefect_url: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    again = read(ask(done, "promote", f"models:/{MODEL}/1", "--reason", "again", "--json"))
    assert again["decision"]["verdict"] == "promote"
    done.retrain("better")
    assert ask(done, "run", "tiny").exit_code == 0
    assert done.champion() == 2
    back = read(ask(done, "rollback", MODEL, "--reason", "it mislabels", "--json"))
    assert back == {"champion": f"models:/{MODEL}/1"}
    assert done.champion() == 1
    result = ask(done, "promote", f"models:/{MODEL}/2", "--reason", "it does not")
    assert result.exit_code == 3
    assert "REFUSED" in result.stdout
    assert done.champion() == 1
    found = read(
        ask(done, "promote", f"models:/{MODEL}/2", "--override", "--reason", "it is fine", "--json")
    )
    assert found == {"champion": f"models:/{MODEL}/2", "overridden": True}
    assert done.champion() == 2
    ran = ask(done, "run", "tiny", "--fail-on-refusal")
    assert ran.exit_code == 0, ran.output
    assert "champion" in ran.stdout
    assert ask(done, "rollback", MODEL, "--reason", "it does after all").exit_code == 0
    for wrong in ("nobody", f"models:/{MODEL}/2"):
        assert ask(done, "rollback", wrong, "--reason", "x").exit_code == 2
    result = ask(done, "rollback", MODEL, "--reason", "once more")
    assert (result.exit_code, "no previous champion" in result.stderr) == (1, True)


def test_lineage_leads_to_commit_data_and_run(done: Project, ask: Ask) -> None:
    found = read(ask(done, "lineage", f"models:/{MODEL}@champion", "--json"))
    assert found["git"]["found"] is True
    assert all(stage["found"] and stage["current"] for stage in found["dvc"].values())
    assert found["prefect"]["flow_run_id"]
    assert "git.commit" in ask(done, "lineage", f"models:/{MODEL}/1").stdout


def test_lineage_tells_what_is_lost_from_what_is_not_current(done: Project, ask: Ask) -> None:
    (done.root / "dvc.lock").unlink()
    stages = read(ask(done, "lineage", f"models:/{MODEL}/1", "--json"))["dvc"].values()
    assert {(stage["found"], stage["current"]) for stage in stages} == {(True, False)}
    shutil.rmtree(done.root / "artifacts" / "tiny" / "train_student")
    shutil.rmtree(done.root / ".dvc" / "cache")
    found = read(ask(done, "lineage", f"models:/{MODEL}/1", "--json"))["dvc"]
    assert [stage for stage, entry in found.items() if not entry["found"]] == ["train_student"]


@pytest.mark.parametrize("uri", ["triage", "models:/nobody@champion", f"models:/{MODEL}/77"])
def test_a_model_that_is_not_there_is_the_users_error(done: Project, ask: Ask, uri: str) -> None:
    result = ask(done, "lineage", uri)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")


# --- endings -------------------------------------------------------------------------------------


def test_an_unknown_recipe_names_those_that_exist(project: Project, ask: Ask) -> None:
    for command in ("check", "plan", "run"):
        result = ask(project, command, "nope")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "no recipe 'nope'. Expected one of tiny" in result.stderr


def test_outside_a_repository_each_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match="not inside a stillhouse repository"):
        find_root()
    for command in (["check"], ["plan", "a"], ["run", "a"], ["status"], ["lineage", "models:/a/1"]):
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, result.stdout) == (2, ""), command


def test_the_root_is_found_from_below(project: Project) -> None:
    assert find_root(project.root / "params") == project.root


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            1,
            ("Error: No space left on device: /x/y.", "the-disk-is-full"),
        ),
        (
            OSError(errno.EROFS, "Read-only file system"),
            1,
            ("Error: Read-only file system: no", None),
        ),
        (KeyboardInterrupt(), 130, ("Interrupted.", None)),
        (
            ParamsError("no such thing", where="here", mend="that"),
            2,
            ("Error: no such thing: here. Run: that", None),
        ),
        (
            StageError("train_student@tiny ended", mend="that"),
            1,
            ("Error: train_student@tiny ended. Run: that", "a-stage-ended-and-named-no-error"),
        ),
    ],
)
def test_a_fault_of_the_machine_or_the_user_is_one_plain_line_and_its_place_in_the_runbook(
    project: Project,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    code: int,
    told: tuple[str, str | None],
) -> None:
    said, heading = told

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(job, "read_job", fail)
    result = ask(project, "run", "tiny")
    assert (result.exit_code, result.stdout) == (code, "")
    first, *more = result.stderr.splitlines()
    assert first.startswith(said)
    assert more == ([f"More: {runbook.PAGE}#{heading}"] if heading else [])


def test_a_bug_keeps_its_traceback(
    project: Project, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "read_job", lambda _: 1 / 0)
    result = ask(project, "run", "tiny")
    assert isinstance(result.exception, ZeroDivisionError)
