"""The subcommand inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Fit, Json, command, examples, say


@examples(
    "edgecifar inspect my_pictures",
    "edgecifar inspect my_pictures --sheet sheet.png",
    "edgecifar inspect list.csv --json",
)
@command
def inspect(
    data: Annotated[Path, typer.Argument(help="A folder with a folder of pictures per class, or a CSV.")],
    fit: Annotated[Fit, typer.Option(help="How each picture is made square.")] = Fit.crop,
    val: Annotated[float, typer.Option(min=0, max=0.5, help="Share used for validation.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=0.5, help="Share used for testing.")] = 0.1,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG with some pictures of each class, as the net sees them.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything is wrong.")] = False,
    as_json: Json = False,
) -> None:
    """Report on labelled pictures before training: unreadable ones, duplicates, leaks, wrong labels, imbalance."""
    from ..runtime.paths import expanded
    from ..train.adapting import DEFAULT_BUDGET, held_out_remark
    from ..train.data import CACHE
    from ..train.folders import FolderOptions
    from ..train.inspection import draw_sheet
    from ..train.inspection import inspect as look
    from .display import json_text, padded, width_of
    from .progress import Progress

    options = FolderOptions(fit=fit.value, val=val, test=test)
    with Progress(None) as progress:
        report, pictures = look(data, options, expanded(CACHE), progress.update_of)
    problems = report.problems()
    few = held_out_remark(sum(report.counts.get("val", {}).values()), DEFAULT_BUDGET)
    notes = [*report.notes, *([few] if few else [])]
    if as_json:
        print(json_text({**report.as_json(), "notes": notes}))
    else:
        width = max(map(width_of, report.labels))
        splits = [split for split in ("train", "val", "test") if split in report.counts]
        print(f"{'':<{width}}" + "".join(f"{split:>9}" for split in splits))
        for label in report.labels:
            print(padded(label, width) + "".join(f"{report.counts[split].get(label, 0):>9,}" for split in splits))
        exact = sum(pair.exact for pair in report.pairs)
        print(f"\n{exact:,} exact and {len(report.pairs) - exact:,} near duplicates")
        print("\n".join(f"- {problem}" for problem in problems) or "Nothing is wrong.")
        for note in notes:
            print(f"Note: {note}")
    if sheet:  # last: where the picture cannot be written, the report is not lost
        draw_sheet(pictures, sheet)
        say(f"The pictures as the net sees them: {sheet}")
    if strict and problems:
        raise typer.Exit(1)
