"""What the scripts share: compose the configuration, refuse a bad one in one line, run stages."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

from internal_rl import runtime
from internal_rl.config import Config
from internal_rl.running import names
from internal_rl.running.compose import CONF, compose, one_line, register, sweep
from internal_rl.training import stopping
from internal_rl.validation import from_omegaconf

Work = Callable[[Config], None]


def hydra_main(work: Work) -> None:
    """Run `work` with the config composed from conf/ and the command line.

    The command line is in Hydra's syntax. With --multirun there is a job per combination of the
    listed values; one that fails is named, and ends no other.

    A bad setting ends in one line on stderr and exit status 2, before any work; so does a file of
    the run that is missing or damaged. A stop ends in one line, too: status 3 on SIGTERM, SIGUSR1
    or at the time limit, 130 on Ctrl-C. Anything else is an error of the program and keeps its
    traceback.
    """
    words = sys.argv[1:]
    overrides = [word for word in words if word not in ("--multirun", "-m")]
    with stopping.one_line_endings():
        if any(word.startswith("-") or _is_hydras(word) for word in overrides):
            _run_by_hydra(work)
        elif len(overrides) < len(words):
            _run_each(work, sweep(overrides))
        else:
            _run(work, compose(overrides))


def _run(work: Work, config: Config, *, in_sweep: bool = False) -> None:
    # Of several runs each gets a directory named after what differs in it.
    if in_sweep and config.run_dir is None:
        runs = names.runs_folder() / config.experiment_name
        config = replace(config, run_dir=str(runs / names.folder(config)))
    runtime.use_matmul_precision(config.matmul_precision)
    work(config if config.dry_run else names.named(config))


def _run_each(work: Work, jobs: list[list[str]]) -> None:
    """Run the jobs of a sweep one after the other; those that fail are named at the end."""
    failed: list[str] = []
    statuses: set[int] = set()
    for number, overrides in enumerate(jobs, 1):
        name = " ".join(overrides)
        print(f"job {number} of {len(jobs)}: {name}", flush=True)
        try:
            _run(work, compose(overrides), in_sweep=True)
        except Exception as error:  # noqa: BLE001  whatever it is, it is this job's alone
            failed.append(name)
            try:
                statuses.add(stopping.say(error))
            except Exception:  # noqa: BLE001  not the user's fault
                traceback.print_exc()
                statuses.add(1)
    if failed:
        print(f"failed: {len(failed)} of {len(jobs)} jobs: {'; '.join(failed)}", file=sys.stderr)
        sys.exit(2 if statuses == {2} else 1)


def _is_hydras(override: str) -> bool:
    """Whether an override is one of Hydra's own configuration, such as hydra/launcher=joblib."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _run_by_hydra(work: Work) -> None:
    """Leave it to Hydra's own program, which alone has its flags, sweepers and launchers."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    # Errors are raised, not printed. A sweep's folder is Hydra's, and it knows no home directory.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if "INTERNAL_RL_RUNS" in os.environ:
        os.environ["INTERNAL_RL_RUNS"] = str(names.runs_folder())
    register()

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def program(node: object) -> None:
        mode = HydraConfig.get().mode
        in_sweep = mode is not None and mode.name == "MULTIRUN"
        _run(work, from_omegaconf(node), in_sweep=in_sweep)

    with one_line():
        program()


def run_stage_script(*stages: str) -> None:
    """Entry point of a stage's script."""

    def work(config: Config) -> None:
        from internal_rl import stages as registry
        from internal_rl.running.pipeline import run_stages
        from internal_rl.running.start import check_until, open_run

        check_until(config)
        if config.dry_run:
            from internal_rl.running.dry_run import describe

            print(describe(config))
            return
        stopping.interrupt_after(config.time_limit)

        # No stage named: all up to `until`, then the last one, the report.
        known = registry.names()
        every = (*known[: known.index(config.until) + 1], known[-1])
        run_stages(open_run(config), stages or tuple(dict.fromkeys(every)))

    hydra_main(work)
