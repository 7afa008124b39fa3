"""Slurm's programs for tests without Slurm: what was submitted is kept in a file, and tests say what became of it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "sinfo", "sacctmgr", "scancel")


class FakeSlurm:
    """A folder with the programs and the jobs: {number: {"name", "array", "state", ...}}.

    config: max_array; refuse_after: how many submissions are accepted; answers: whether squeue does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / "bin"
        self.programs.mkdir(parents=True)
        for name in PROGRAMS:
            # -S: no site-packages, whose import takes longest.
            (self.programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} {folder} "$@"\n')
            (self.programs / name).chmod(0o755)
        self.write({})
        self.config()

    def config(self, max_array: int = 1001, refuse_after: int = 10**6, answers: bool = True) -> None:
        values = {"max_array": max_array, "refuse_after": refuse_after, "answers": answers}
        (self.folder / "config.json").write_text(json.dumps(values))

    def jobs(self) -> dict[str, dict]:
        return json.loads((self.folder / "jobs.json").read_text())

    def write(self, jobs: dict[str, dict]) -> None:
        (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def end(self, state: str, kind: str = "", forgotten: bool = False) -> None:
        """All jobs of a kind are in this state now. forgotten: by squeue, so that the accounting alone knows them."""
        jobs = self.jobs()
        for job in jobs.values():
            if f".{kind}" in job["name"]:
                job |= {"state": state, "forgotten": forgotten}
        self.write(jobs)


def main(program: str, folder: Path, arguments: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    jobs = json.loads((folder / "jobs.json").read_text())
    if program == "sbatch":
        sbatch(folder, config, jobs, arguments)
    elif program == "squeue":
        if not config["answers"]:
            raise SystemExit("squeue: error: Unable to contact slurm controller")
        squeue(jobs, dict(a.removeprefix("--").partition("=")[::2] for a in arguments))
    elif program == "scontrol":
        print(f"MaxArraySize = {config['max_array']}\nAccountingStorageEnforce = associations,limits,qos")
    elif program == "sinfo":
        print("main*|1-00:00:00|4|8|65536|gpu:4(S:0)\nlong|infinite|1|8|65536|(null)")
    elif program == "sacctmgr":
        print("lab" if "account" in arguments else "normal")
    elif program == "sacct":
        sacct(jobs, arguments)


def sbatch(folder: Path, config: dict, jobs: dict[str, dict], arguments: list[str]) -> None:
    if arguments == ["--version"]:
        return
    script = Path(arguments[-1]).read_text()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, flags=re.MULTILINE))
    if asked.get("constraint") == "nowhere":
        raise SystemExit("sbatch: error: Batch job submission failed: Invalid feature specification")
    if arguments[0] == "--test-only":
        return
    if len(jobs) >= config["refuse_after"]:
        raise SystemExit("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed")
    number = str(100 + len(jobs))
    first, last = re.match(r"(\d+)-(\d+)", asked.get("array", "") or "0-0").groups()
    tasks = int(last) - int(first) + 1 if "array" in asked else None
    jobs[number] = {"name": asked["job-name"], "tasks": tasks, "state": "PENDING", "asked": asked, "script": script}
    temporary = folder / f"jobs.{os.getpid()}"
    temporary.write_text(json.dumps(jobs))
    temporary.rename(folder / "jobs.json")
    print(f"Submitted batch job {number}")


def squeue(jobs: dict[str, dict], options: dict[str, str]) -> None:
    numbers, names = options.get("jobs", "").split(","), options.get("name", "").split(",")
    known = {n: j for n, j in jobs.items() if (n in numbers or j["name"] in names) and not j.get("forgotten")}
    if not known and "jobs" in options:
        raise SystemExit("slurm_load_jobs error: Invalid job id specified")
    for number, job in known.items():
        for task in range(job["tasks"] or 1):
            values = {
                "ArrayJobID": number,
                "ArrayTaskID": "N/A" if job["tasks"] is None else task,
                "JobID": int(number) * 1000 + task if job["tasks"] else number,
                "State": job["state"],
                "Reason": "None",
                "RestartCnt": 0,
                "NodeList": "",
                "StartTime": "N/A",
                "Name": job["name"],
            }
            fields = [field.partition(":")[::2] for field in options["Format"].split(",")]
            print("".join(str(values[name]).ljust(int(width)) for name, width in fields))


def sacct(jobs: dict[str, dict], arguments: list[str]) -> None:
    """Of what squeue has forgotten: jobs of another user, of which it tells only where it is asked for all users."""
    if not any(job.get("forgotten") for job in jobs.values()):
        raise SystemExit("sacct: error: Slurm accounting storage is disabled")
    for number, job in jobs.items() if "--allusers" in arguments else ():
        print(
            f"{number}{'_[0-9]' if job['tasks'] else ''}|{job['state']} by 1000|0:0|None assigned|Unknown|{job['name']}"
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
