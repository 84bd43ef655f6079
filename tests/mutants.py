"""Mutation testing of one part of the package: do its own tests notice a changed line?

``python -m tests.mutants auroc`` lets mutmut make the mutants of ``chexnet/auroc`` in a copy of the
project and tries a random sample of them on ``tests/auroc``; ``evaluation/calibration`` is one file
of a part, judged by ``tests/evaluation``. mutmut leaves out decorated functions (properties,
context managers) and code outside functions. We leave out mutants that change only the text of a
message or ``strict=True`` of `zip`, a guard against our own errors. The survivors are printed.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BESIDE = ("benchmarks", "studies", "docs", "notebooks")  # that tests use
COPIED = ("chexnet", "tests", "pyproject.toml", *BESIDE)
KILLED, NO_TEST = {1, 3}, 33  # exit codes: pytest's; mutmut's for a function that no test calls
SURVIVED = {0, NO_TEST}  # all others are timeouts and crashes, which are noticed too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", help="such as auroc, splits or evaluation/calibration")
    parser.add_argument("--sample", type=int, default=60, help="at most this many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tests", nargs="+", help="by default the part's folder or file of tests")
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "mutants")
    options = parser.parse_args()
    folder = options.folder / options.part.replace("/", "-")
    set_up(folder, options.part, options.tests)
    mutmut(folder, "none", check=False)  # makes the mutants, and notes which test calls what
    names = mutants_of(folder)
    if not names:
        sys.exit(f"{options.part}: no mutants; the output above says why")
    texts = diffs_of(folder, names)
    names = [name for name in names if not is_left_out(texts[name])]
    chosen = sorted(random.Random(options.seed).sample(names, min(options.sample, len(names))))
    mutmut(folder, *chosen)
    codes = mutants_of(folder)
    survivors = [name for name in chosen if codes[name] in SURVIVED]
    for name in survivors:
        called = "" if codes[name] == 0 else "  (no test calls it)"
        print(f"\n## {name}{called}\n{texts[name]}")
    killed = len(chosen) - len(survivors)
    print("\n| part | mutants | tried | killed | % |\n|---|---|---|---|---|")
    share = f"{100 * killed / len(chosen):.0f}"
    print(f"| {options.part} | {len(names)} | {len(chosen)} | {killed} | {share} |")


def set_up(folder: Path, part: str, chosen: list[str] | None) -> None:
    """A copy of the project with mutmut's settings."""
    package, tests = ROOT / "chexnet" / part, Path("tests") / part.partition("/")[0]
    files = f"chexnet/{part}/*" if package.is_dir() else f"chexnet/{part}.py"
    if not package.is_dir() and not package.with_suffix(".py").is_file():
        sys.exit(f"{part}: expected a folder or file of chexnet, such as auroc or cam/maps")
    if not (ROOT / tests).is_dir():
        tests = tests.with_name(f"test_{tests.name}.py")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    settings = {
        "source_paths": "chexnet",
        "also_copy": "\n".join(BESIDE),
        "only_mutate": files,
        "pytest_add_cli_args_test_selection": "\n".join(chosen or [tests.as_posix()]),
        "pytest_add_cli_args": "-p\nno:cacheprovider",
        "process_isolation": "forkserver",  # a process that has used TensorFlow cannot be forked
        "timeout_multiplier": "2",
        "timeout_constant": "10",
        "track_dependencies": "false",
        "use_git_change_detection": "false",
    }
    lines = [f"{key} = {value}".replace("\n", "\n    ") for key, value in settings.items()]
    (folder / "setup.cfg").write_text("\n".join(["[mutmut]", *lines, ""]))


def mutmut(folder: Path, *names: str, check: bool = True) -> None:
    program = Path(sys.executable).with_name("mutmut")
    command = [program, "run", "--max-children", "1", *names]
    environment = os.environ | {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "mutmut.log").open("a") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log)
    if check and done.returncode:
        sys.exit(f"mutmut failed: {folder / 'mutmut.log'}")


def mutants_of(folder: Path) -> dict[str, int | None]:
    """The exit code of each mutant, None if it was not tried."""
    found: dict[str, int | None] = {}
    for path in sorted((folder / "mutants").rglob("*.py.meta")):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def diffs_of(folder: Path, names: list[str]) -> dict[str, str]:
    """What each mutant changes; by mutmut's own code, in its folder."""
    script = (
        "import json, sys; from mutmut.mutation.diff_apply import get_diff_for_mutant;"
        "json.dump({name: get_diff_for_mutant(name) for name in json.load(sys.stdin)}, sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder, input=json.dumps(list(names)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def is_left_out(diff: str) -> bool:
    """Whether changed lines differ in strings with a space, the text of a message, or strict."""
    sides = [
        "\n".join(re.findall(rf"^\{sign}(?!\{sign}\{sign})(.*)$", diff, re.M)) for sign in "-+"
    ]
    strict = re.compile(r",? *strict=\w+,?|, *(?=\))")
    sides = [strict.sub("", side).strip() for side in sides]
    texts = re.compile(r'f?"[^"\n]*"')
    plain = [texts.sub(lambda text: "" if " " in text[0] else text[0], side) for side in sides]
    return plain[0] == plain[1]


if __name__ == "__main__":
    main()
