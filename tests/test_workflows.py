"""The Makefile, and the files of GitHub: workflows, issue forms, pull requests."""

import re
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML, of the extra dev")

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = {path.name: path for path in sorted((GITHUB / "workflows").glob("*.yml"))}
FORMS = {path.name: path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))}
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
REPOSITORY = "https://github.com/diffstride/diffstride"
TARGETS = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]
ACTION = re.compile(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)")


def workflow(name):
    # YAML 1.1 reads the key "on" as true.
    return yaml.safe_load(WORKFLOWS[name].read_text())


def steps(name):
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def values_of_matrix(job, key):
    matrix = job.get("strategy", {}).get("matrix", {})
    return [*matrix.get(key, ()), *(each[key] for each in matrix.get("include", ()))]


def commands(job):
    """What the steps of a job run, for each value of the matrix."""
    for step in job["steps"]:
        run = step.get("run", "")
        if match := re.search(r"\$\{\{ matrix\.(\w+) \}\}", run):
            values = values_of_matrix(job, match[1])
            assert values, f"the matrix has no {match[1]}"
            yield from (run.replace(match[0], value) for value in values)
        else:
            yield run


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_run_targets_that_exist(name):
    made = [
        target
        for job in workflow(name)["jobs"].values()
        for command in commands(job)
        for target in re.findall(r"\bmake (\S+)", command)
    ]
    assert made
    assert set(made) <= TARGETS


def test_workflows_check_test_and_build():
    made = {
        command.removeprefix("make ")
        for name in ("checks.yml", "tests.yml")
        for job in workflow(name)["jobs"].values()
        for command in commands(job)
    }
    assert {"check", "docs", "package", "oldest", "newest"} <= made


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_are_pinned_and_have_few_rights(name):
    read = workflow(name)
    assert read["permissions"] == {"contents": "read"}
    assert {"group", "cancel-in-progress"} == set(read["concurrency"])
    assert "secrets." not in WORKFLOWS[name].read_text()
    for job in read["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert job.get("permissions", {"id-token": "write"}) == {"id-token": "write"}
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used
    assert [action for action in used if not ACTION.fullmatch(action)] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_cache_what_pip_downloads(name):
    setups = [s["with"] for s in steps(name) if "actions/setup-python@" in s.get("uses", "")]
    assert setups
    for setup in setups:
        assert setup["cache"] == "pip"
        assert (ROOT / setup["cache-dependency-path"]).is_file()


def test_tests_run_on_the_oldest_and_the_newest_python():
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    oldest = re.search(r'requires-python = ">=(.+)"', PYPROJECT)[1]  # type: ignore[index]
    assert classifiers[0] == oldest
    job = workflow("tests.yml")["jobs"]["tests"]
    ran = list(zip(values_of_matrix(job, "python"), values_of_matrix(job, "torch"), strict=True))
    assert (oldest, "oldest") in ran
    assert (classifiers[-1], "newest") in ran


@pytest.mark.parametrize(("tag", "code"), [("v{}", 0), ("v{}.post1", 1), ("v9.9.9", 1)])
def test_a_release_needs_the_tag_of_its_version(tag, code):
    source = (ROOT / "src/diffstride/_version.py").read_text()
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]  # type: ignore[index]
    (check,) = [step["run"] for step in steps("release.yml") if "grep" in step.get("run", "")]
    environment = {"GITHUB_REF_NAME": tag.format(version), "PATH": "/usr/bin:/bin"}
    command = ["bash", "-ec", check]
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == code


def test_only_the_job_that_publishes_may_publish():
    jobs = workflow("release.yml")["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["needs"] == "build"
    assert not any("run" in step for step in jobs["publish"]["steps"])


def test_makefile_describes_every_target():
    described = dict(re.findall(r"^([a-z]+):.*  ## (.+)$", MAKEFILE, re.MULTILINE))
    assert set(described) == TARGETS
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(line.split(maxsplit=1) for line in printed.stdout.splitlines()) == described


def test_the_oldest_torch_is_the_one_declared():
    declared = re.search(r'^dependencies = \["torch>=([\d.]+)"\]$', PYPROJECT, re.MULTILINE)
    assert declared is not None
    planned = ["make", "--dry-run", "--always-make", "oldest"]
    printed = subprocess.run(planned, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f'"torch=={declared[1]}.*"' in printed
    assert ".venv-oldest/bin/python -m pytest" in printed


def test_issue_forms_ask_for_what_is_needed():
    assert {"bug.yml", "feature.yml", "config.yml"} <= set(FORMS)
    for name, path in FORMS.items():
        form = yaml.safe_load(path.read_text())
        if name == "config.yml":
            continue
        assert {"name", "description", "labels", "body"} == set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(field["attributes"]["label"] for field in form["body"])
    bug = yaml.safe_load(FORMS["bug.yml"].read_text())["body"]
    required = {field["id"] for field in bug if field.get("validations", {}).get("required")}
    assert {"versions", "network", "code"} <= required


def test_code_of_the_bug_report_runs():
    pytest.importorskip("torchvision")
    (field,) = [
        f for f in yaml.safe_load(FORMS["bug.yml"].read_text())["body"] if f["id"] == "code"
    ]
    exec(field["attributes"]["placeholder"], {})


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in (*GITHUB.rglob("*"), ROOT / "pyproject.toml", ROOT / "CITATION.cff")
        if p.is_file()
    ],
    ids=str,
)
def test_addresses_of_this_repository_are_those_of_the_project(path):
    text = path.read_text()
    for address in re.findall(r"https://github\.com/[\w-]+/[\w-]+", text):
        assert address == REPOSITORY, address
    for file, anchor in re.findall(rf"{REPOSITORY}/blob/main/([\w./-]+)(#[\w-]+)?", text):
        assert (ROOT / file).is_file(), file
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert not anchor or anchor[1:] in anchors, anchor
