"""Print a script that completes commands, options and their choices in a shell.

bash: openmm-sd completion bash > ~/.local/share/bash-completion/completions/openmm-sd
zsh: add eval "$(openmm-sd completion zsh)" to ~/.zshrc
"""

from __future__ import annotations

import argparse

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd completion bash"

_SCRIPT = """\
_openmm_sd() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        words='{commands}'
    else
        case "${{COMP_WORDS[1]}} $before" in
{choices}
        *)
            case "${{COMP_WORDS[1]}} $word" in
{options}
            esac ;;
        esac
    fi
    [[ -n $words ]] && COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _openmm_sd openmm-sd
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from . import COMMANDS, parser_of

    choices, options = [], []
    for name in COMMANDS:
        actions = [a for a in parser_of(name)._actions if a.option_strings]
        flags = " ".join(flag for action in actions for flag in action.option_strings)
        options.append(f"            '{name} '-*) words='{flags}' ;;")
        for action in actions:
            words = " ".join(map(str, action.choices or ()))
            if isinstance(action.metavar, str) and action.metavar.startswith("{"):
                words = action.metavar.strip("{}").replace(",", " ")
            if words:
                pattern = "|".join(f"'{name} {flag}'" for flag in action.option_strings)
                choices.append(f"        {pattern}) words='{words}' ;;")
    script = _SCRIPT.format(
        commands=" ".join(COMMANDS), choices="\n".join(choices), options="\n".join(options)
    )
    script = _ZSH + script if arguments.shell == "zsh" else script
    return Outcome({"shell": arguments.shell, "script": script}, script.rstrip("\n"))
