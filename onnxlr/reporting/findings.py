"""What the planner compared and built, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from onnxlr.planning import Contender, Findings, RoundRecord
from onnxlr.reporting.cells import number_of, shown, size_of, table_of

__all__ = ["print_findings"]


def print_findings(console: Console, findings: Findings) -> None:
    """Print the models that were compared in one run, and what was predicted of those built."""
    console.print(f"[bold]goal[/]  {shown(findings.goal)}")
    measures = list(dict.fromkeys(name for each in findings.contenders for name in each.drops))
    if findings.contenders:
        _print_contenders(console, findings.contenders, measures)
    if findings.rounds:
        _print_rounds(console, findings.rounds, measures)
    cached = f", {findings.from_cache} of them from the cache" if findings.from_cache else ""
    console.print(f"[dim]{findings.candidates} candidates of layers were measured{cached}[/]")


def _print_contenders(
    console: Console, contenders: Sequence[Contender], measures: Sequence[str]
) -> None:
    table = table_of("model", "size", "of it", "time", "of it", *map(shown, measures), "")
    for each in contenders:
        if each.problem is not None:
            continue
        table.add_row(
            shown(each.name),
            "" if each.bytes is None else size_of(each.bytes),
            number_of(each.size, ".3f"),
            "" if each.milliseconds is None else f"{each.milliseconds:.3g} ms",
            _latency(each),
            *_drops(each.drops, measures),
            "[green]best[/]" if each.chosen else ("" if each.meets else "[yellow]misses[/]"),
        )
    console.print(table)
    problems: dict[str, list[str]] = {}
    for each in contenders:
        if each.problem is not None:
            problems.setdefault(each.problem, []).append(each.name)
    for problem, names in problems.items():
        console.print(f"[dim]{shown('; '.join(names))}: {shown(problem)}[/]")
    console.print(
        "[dim]of it: of the original's, with quartiles; times are of one run on one thread, in one "
        "race; models that lose more than is allowed are not timed; then what is lost[/]"
    )


def _print_rounds(console: Console, rounds: Sequence[RoundRecord], measures: Sequence[str]) -> None:
    table = table_of(
        "built", "layers", "size", "found", "time", "found", "damage", *map(shown, measures), ""
    )
    for number, each in enumerate(rounds, 1):
        table.add_row(
            str(number),
            str(each.rewritten),
            number_of(each.predicted_size, ".3f"),
            number_of(each.size, ".3f"),
            number_of(each.predicted_latency, ".3f"),
            number_of(each.latency, ".3f"),
            number_of(each.predicted_damage, ".2g"),
            *_drops(each.drops, measures),
            _verdict(each),
        )
    console.print(table)
    console.print(
        "[dim]size, time: predicted from single layers, as fractions of the original's, and found; "
        "damage: predicted squared relative error of the outputs; then what is lost[/]"
    )


def _verdict(record: RoundRecord) -> str:
    if record.problem is not None:
        return f"[red]{shown(record.problem)}[/]"
    return "[green]meets[/]" if record.meets else "[yellow]misses[/]"


def _latency(contender: Contender) -> str:
    if contender.latency is None:
        return ""
    if contender.latency_low is None or contender.latency_high is None:
        return f"{contender.latency:.3f}"
    low, high = contender.latency_low, contender.latency_high
    return f"{contender.latency:.3f} ({low:.3f}–{high:.3f})"


def _drops(drops: Mapping[str, float], measures: Sequence[str]) -> list[str]:
    return [number_of(drops.get(name), ".3g") for name in measures]
