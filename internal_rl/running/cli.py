"""What the scripts share: compose the configuration, refuse a bad one in one line, run stages."""

import sys
from collections.abc import Callable
from dataclasses import replace

from internal_rl import runtime
from internal_rl.config import Config, ConfigError
from internal_rl.running.compose import CONF, register
from internal_rl.validation import from_omegaconf


def hydra_main(work: Callable[[Config], None]) -> None:
    """Run `work` with the config composed from conf/ and the command line.

    The command line is in Hydra's syntax, --multirun included.

    A bad setting ends in one line on stderr and exit status 2, before any work; so does a file of
    the run that is missing or damaged. A stop ends in one line, too: status 3 on SIGTERM or at the
    time limit, 130 on Ctrl-C. Anything else is an error of the program and keeps its traceback.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from internal_rl.data.dataset import DatasetError
    from internal_rl.training.checkpoint import CheckpointError
    from internal_rl.training.loop import Interrupted

    register()

    # Errors that a user can mend become one line and an exit status.
    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def compose(node: object) -> None:
        try:
            config = from_omegaconf(node)

            # Of several runs each gets a directory named after what differs in it.
            settings = HydraConfig.get()
            several = settings.mode is not None and settings.mode.name == "MULTIRUN"
            if several and config.run_dir is None:
                from internal_rl.running.start import default_directory

                changed = settings.job.override_dirname.replace("/", "-") or "default"
                config = replace(config, run_dir=str(default_directory(config) / changed))

            runtime.use_matmul_precision(config.matmul_precision)
            work(config)
        except (ConfigError, CheckpointError, DatasetError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(3)
        except KeyboardInterrupt:
            print("stopped; run the same command to continue", file=sys.stderr)
            sys.exit(130)

    compose()


def run_stage_script(*stages: str) -> None:
    """Entry point of a stage's script."""

    def work(config: Config) -> None:
        from internal_rl import stages as registry
        from internal_rl.running.pipeline import run_stages
        from internal_rl.running.start import check_until, open_run
        from internal_rl.training.loop import interrupt_after

        check_until(config)
        if config.dry_run:
            from internal_rl.running.dry_run import describe

            print(describe(config))
            return
        if config.time_limit is not None:
            interrupt_after(config.time_limit)

        # No stage named: all up to `until`, then the last one, the report.
        names = registry.names()
        every = (*names[: names.index(config.until) + 1], names[-1])
        run_stages(open_run(config), stages or tuple(dict.fromkeys(every)))

    hydra_main(work)
