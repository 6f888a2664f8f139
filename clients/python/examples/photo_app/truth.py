"""What the databases say when all is over: was anything lost that must not be?"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from . import database, jobs, search, settings

_ALL_JOBS = "SELECT id FROM photos UNION ALL SELECT name FROM users"
_DONE_JOBS = "SELECT photo FROM thumbnails UNION ALL SELECT user FROM mails"
_RUNS = "SELECT sum(runs) FROM (SELECT runs FROM thumbnails UNION ALL SELECT runs FROM mails)"


@dataclass(frozen=True)
class Truth:
    """Of the jobs, by the rows that there should be; of the index, likewise."""

    jobs: int
    jobs_undone: int
    """Photos without thumbnail and users without mail."""
    effects_twice: int
    """Thumbnails and mails beyond one for each."""
    runs_again: int
    """Runs of a job after its first, which had no effect."""
    documents: int
    documents_missing: int
    """What the index lacks of the database."""
    documents_missing_rebuilt: int
    """The same once the index was rebuilt."""

    def __str__(self) -> str:
        return (
            f"jobs: {self.jobs} accepted, {self.jobs_undone} undone, {self.effects_twice} done"
            f" twice ({self.runs_again} ran again, to no effect)\n"
            f"index: {self.documents_missing} of {self.documents} documents missing;"
            f" {self.documents_missing_rebuilt} after it was rebuilt from the database"
        )


def find_truth() -> Truth:
    """Compares the databases, and mends the index."""
    with closing(database.connect(settings.application())) as application:
        with closing(jobs.results_database()) as results:
            wanted = [row for (row,) in application.execute(_ALL_JOBS)]
            done = [row for (row,) in results.execute(_DONE_JOBS)]
            (runs,) = results.execute(_RUNS).fetchone()
        with closing(search.open_index(settings.index())) as index:
            documents = database.count(application, "photos")
            documents += database.count(application, "comments")
            indexed = database.count(index, "documents")
            search.rebuild(index, application)
            rebuilt = database.count(index, "documents")
    return Truth(
        jobs=len(wanted),
        jobs_undone=len(set(wanted) - set(done)),
        effects_twice=len(done) - len(set(done)),
        runs_again=(runs or 0) - len(done),
        documents=documents,
        documents_missing=documents - indexed,
        documents_missing_rebuilt=documents - rebuilt,
    )
