"""``learnit-r8 completion``: a script that completes commands, options and runs in a shell."""

from __future__ import annotations

import argparse
from typing import NamedTuple

RUNS = '"${R8_RUNS:-runs}"'
"""The folder of runs, as a shell writes it."""


class Command(NamedTuple):
    """A command for a script.

    Attributes:
        name: Its name.
        help: One line.
        options: Its long options.
        choices: The values of each option or argument that has some.
        takes_run: Whether its argument is a run.
    """

    name: str
    help: str
    options: list[str]
    choices: dict[str, list[str]]
    takes_run: bool


def completion(options: argparse.Namespace) -> int:
    """Print the script for a shell; ``source <(learnit-r8 completion bash)`` turns it on."""
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](commands()))
    return 0


def commands() -> list[Command]:
    """Every command of the parser."""
    from . import _parser

    (group,) = (each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction))
    helps = {each.dest: each.help or "" for each in group._choices_actions}
    return [_command(name, helps[name], parser) for name, parser in group.choices.items()]


def _command(name: str, text: str, parser: argparse.ArgumentParser) -> Command:
    from ..dashboard.render.pages import VIEWS
    from ..dashboard.theme import NAMES

    options, choices = [], {}
    for action in parser._actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        options += long
        known = action.choices or {"view": VIEWS, "theme": NAMES}.get(action.dest, ())
        if known:
            choices[long[0] if long else ""] = [str(choice) for choice in known]
    takes_run = any(action.dest in ("run", "runs") for action in parser._actions)
    return Command(name, text, options, choices, takes_run)


def _bash(found: list[Command]) -> str:
    cases = []
    for command in found:
        inner = [
            f'            {option}) COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$word")); return;;'
            for option, values in command.choices.items()
            if option
        ]
        words = " ".join([*command.options, *command.choices.get("", ())])
        runs = (
            f'\n            COMPREPLY+=($(compgen -W "$(ls {RUNS} 2>/dev/null)" -- "$word") $(compgen -d -- "$word"))'
        )
        lines = ["            case $before in", *inner, "            esac"] if inner else []
        body = "\n".join([*lines, f'            COMPREPLY=($(compgen -W "{words}" -- "$word"))'])
        cases.append(f"        {command.name})\n{body}{runs * command.takes_run};;")
    names = " ".join(command.name for command in found)
    return f"""_learnit_r8() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{names} --help --version" -- "$word")); return; fi
    case ${{COMP_WORDS[1]}} in
{chr(10).join(cases)}
    esac
}}
complete -o filenames -F _learnit_r8 learnit-r8"""


def _zsh(found: list[Command]) -> str:
    cases = []
    for command in found:
        lines = [
            f"            [[ $words[CURRENT-1] == {option} ]] && {{ compadd -- {' '.join(values)}; return }}"
            for option, values in command.choices.items()
            if option
        ]
        lines.append(f"            compadd -- {' '.join([*command.options, *command.choices.get('', ())])}")
        if command.takes_run:
            lines.append(f"            compadd -- {RUNS}/*(N/:t); _files -/")
        lines[-1] += ";;"
        cases.append("\n".join([f"        {command.name})", *lines]))
    described = " ".join(f"'{command.name}:{command.help.replace(chr(39), '')}'" for command in found)
    return f"""#compdef learnit-r8
_learnit_r8() {{
    local -a known=({described})
    if (( CURRENT == 2 )); then _describe command known; return; fi
    case $words[2] in
{chr(10).join(cases)}
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _learnit_r8 "$@"; else compdef _learnit_r8 learnit-r8; fi"""


def _fish(found: list[Command]) -> str:
    lines = ["complete -c learnit-r8 -f"]
    for command in found:
        text = command.help.replace("'", "")
        lines.append(f"complete -c learnit-r8 -n __fish_use_subcommand -a {command.name} -d '{text}'")
        inside = f"complete -c learnit-r8 -n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            values = command.choices.get(option)
            lines.append(f"{inside} -l {option[2:]}" + (f" -x -a '{' '.join(values)}'" if values else ""))
        if "" in command.choices:
            lines.append(f"{inside} -a '{' '.join(command.choices[''])}'")
        if command.takes_run:
            lines.append(f"{inside} -a '(ls {RUNS.replace(':-runs', '')} 2>/dev/null; ls runs 2>/dev/null)'")
    return "\n".join(lines).replace('"${R8_RUNS}"', '"$R8_RUNS"')
