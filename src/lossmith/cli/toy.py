"""The command ``toy``: where each loss puts the threshold, on points on a line."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lossmith.cli.screen import check_paths, print_table, progress


@click.command(short_help="Where each loss puts the threshold, on points on a line.")
@click.option("--out", metavar="DIR", default="lossmith-toy", show_default=True, help="Folder for toy.png and toy.svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the optima as JSON instead of tables.")
def toy(out: str, as_json: bool) -> None:
    """Show on points on a line where each loss puts the threshold, with its scale fixed and free.

    f(x) = k (x − b) decides by its sign. Three points can be separated, for 0 < b < 0.25; of the five points of the
    second set at most four can be right. Takes about a minute.
    """
    from lossmith.experiments.toy import figure, optima

    folder = Path(out)
    check_paths([folder / name for name in figure.FILES], "--out", make=True)
    sets = (optima.THREE, optima.FIVE)
    with progress("toy", 2 * len(optima.LOSSES)) as show:
        studies: dict[str, list[optima.Case]] = {points.name: [] for points in sets}
        for points in sets:
            for loss in optima.LOSSES:
                studies[points.name].append(optima.study_one(loss, points))
                show(sum(map(len, studies.values())))
    three, five = studies.values()
    critical = {case.loss: optima.critical_scale(case.loss, optima.THREE, edge=0.25) for case in three}
    paths = figure.save(figure.figure(three, five), folder)
    if as_json:
        print(json.dumps(figure.as_json(studies, critical, paths), indent=2))
        return
    for points, cases in zip(sets, (three, five), strict=True):
        signs = ", ".join(f"({x:g}, {'+' if label else '−'})" for x, label in zip(points.x, points.label, strict=True))
        title = f"{points.name}: {signs}; best accuracy {optima.best_accuracy(points):.3f}".replace("(-", "(−")
        rows = [figure.cells(case) for case in cases]
        columns = figure.COLUMNS
        if points is optima.THREE:
            columns = (*columns, "right from k")
            rows = [(*row, figure.number(critical[row[0]], digits=4)) for row in rows]
        print_table(title, columns, rows)
    print("figure: " + ", ".join(map(str, paths)))
