"""The command line: which module has which verb, and what all verbs have in common.

A verb's module is imported when it is called, so that a verb which only reads files does not import jax. Not here: the
verbs.
"""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from jaxtrain.base.cache import cache
from jaxtrain.base.tracebacks import keep_tracebacks_in
from jaxtrain.cli.rules import HELP, own_errors, rules_of
from jaxtrain.cli.terminal import report_error, report_stray_errors, show_tracebacks, standard_streams, use_utf8
from jaxtrain.cli.verbs import Verbs
from jaxtrain.cluster.stop import signals_of_command

VERBS = Verbs(
    "Trains JAX experiments, and reads their run folders.\n\n"
    "Every verb has --help; after an experiment's file it lists every field of the experiment. --debug shows the "
    "traceback of every error. Exit codes: 0 finished, 1 damaged data or a bug, 2 user error, 3 does not "
    "fit into memory, 4 diverged, 75 stopped early (run the same command again), 130 Ctrl-C."
)

TYRO_COMPLETES_NO_FILES = {
    "in completions:\n        print": "in completions or ['__TYRO_COMPLETE_FILES__']:\n        print",
    'compgen -f -- "$cur"': 'compgen -f -- "${COMP_WORDS[COMP_CWORD]}"',
    "complete -F": "complete -o filenames -F",
}
"""Replacements in the scripts of tyro 1.0, which complete no file names for positional arguments."""


PLACES = {
    "jaxtrain.cli.train": ("train", "explain", "memory", "verify", "verify_resume"),
    "jaxtrain.cli.deploy": ("evaluate", "predict", "export"),
    "jaxtrain.cli.generate": ("generate",),
    "jaxtrain.cli.replay": ("replay",),
    "jaxtrain.cli.compare": ("compare", "diff"),
    "jaxtrain.cli.runs": ("runs", "watch"),
    "jaxtrain.cli.report": ("report",),
    "jaxtrain.cli.lineage": ("lineage",),
    "jaxtrain.cli.sweep": ("sweep",),
}
"""The functions of modules that are verbs."""

GROUPS = {
    "checkpoints": "jaxtrain.cli.checkpoints",
    "data": "jaxtrain.cli.data",
    "launch": "jaxtrain.cli.launch",
}
"""The groups of verbs: `VERBS` of these modules."""

for _module, _functions in PLACES.items():
    for _function in _functions:
        VERBS.late(_function, _module)
for _group, _module in GROUPS.items():
    VERBS.late(_group, _module, "VERBS")


@VERBS.verb
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> None:
    """Print a script that makes a shell complete verbs, flags and files.

    Install it once for each shell, and again after an update:

    bash: jaxtrain completion bash > ~/.local/share/bash-completion/completions/jaxtrain

    zsh: jaxtrain completion zsh > ~/.zfunc/_jaxtrain, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc

    fish: jaxtrain completion fish > ~/.config/fish/completions/jaxtrain.fish

    Args:
        shell: Which one.
    """
    with contextlib.redirect_stdout(io.StringIO()) as script, contextlib.suppress(SystemExit):
        VERBS.app().cli(prog="jaxtrain", args=["--tyro-write-completion", shell, "-"], registry=_rules_of_all())
    text = script.getvalue()
    for old, new in TYRO_COMPLETES_NO_FILES.items():
        text = text.replace(old, new)
    print(text, end="")


def main() -> None:
    """Run the verb that the command line names; exits with an `ExitCode` if that is not 0."""
    use_utf8()
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]  # of `launch`, not of its job
    words = [word for word in own if word != "--debug"] + sys.argv[len(own) + 1 :]
    show_tracebacks("--debug" in own)
    keep_tracebacks_in(None)
    report_stray_errors()
    with standard_streams(), signals_of_command() as stop:
        try:
            VERBS.find(words)  # imports the verb's module
            stop.importing = False
            code = run(words)
        except (Exception, KeyboardInterrupt) as error:  # of any kind: the user gets a short message
            code = report_error(stop.cause(error))
        except SystemExit as error:
            from jaxtrain.cli.failures import is_exit_of_yours

            if not is_exit_of_yours(error):
                raise
            code = report_error(error)
    if code:
        sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Parse the flags, whose defaults are the values of the named experiment, and call the verb."""
    path, verb = VERBS.find(words)
    rest = words[len(path) :]
    rules = _rules_of_all() if isinstance(verb, Verbs) else rules_of(verb, rest, " ".join(path))
    if (isinstance(verb, Verbs) and not rest) or not {*HELP}.isdisjoint(rest):
        words = [*path, *HELP[:1]]  # tyro's help leaves out the words that come before it
    _cache_programs()
    app, config = VERBS.app(path), (tyro.conf.PositionalMetavarFromFieldName,)
    with own_errors():
        return app.cli(prog="jaxtrain", description=VERBS.help, args=words, registry=rules, config=config) or 0


def _rules_of_all() -> tyro.constructors.ConstructorRegistry:
    """The rules for the help of several verbs, some of which take an experiment."""
    from jaxtrain.cli.flags import registry

    return registry(None)


def _cache_programs() -> None:
    # Compiled programs are cached on disk, so that a second start takes seconds. A verb whose module did not import jax
    # compiles nothing.
    jax: Any = sys.modules.get("jax")
    if jax is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache("programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
