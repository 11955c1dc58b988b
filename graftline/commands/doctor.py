"""`graftline doctor`: what works here, and what to install for the rest."""

from __future__ import annotations

from dataclasses import asdict

from graftline.commands import screen
from graftline.commands.options.printing import Json


def doctor(json: Json = False) -> None:
    """Report what is installed, which targets can be built and run here, and what the others need.

    Examples:

    `graftline doctor`

    `graftline doctor --json`
    """
    from graftline.build.doctor import diagnose

    found = diagnose()
    if json:
        screen.write_json(asdict(found))
        return
    shown = screen.console()
    shown.print(screen.table("machine", ("", " "), list(found.machine.items())))
    packages = [(p.name, p.version or "-") for p in found.packages]
    shown.print(screen.table("packages", ("name", "version"), packages))
    rows = [
        (a.name, "yes" if a.builds else "no", "yes" if a.runs else "no", a.reason, a.install)
        for a in found.abilities
    ]
    columns = ("target", "builds here", "runs here", "why not", "install")
    shown.print(screen.table("targets", columns, rows))
