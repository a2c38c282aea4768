from __future__ import annotations

import threading

from alembic import command
from sqlalchemy import Engine, text

from runner.localcloud.engines import Postgres
from runner.state import migrate
from runner.state.db import connect


def test_the_migrations_make_what_the_models_say(engine: Engine) -> None:
    # Given a database brought to the newest schema, then alembic finds nothing to add
    with engine.begin() as connection:
        config = migrate.config()
        config.attributes["connection"] = connection
        command.check(config)


def test_two_upgrades_at_once_and_again(postgres: Postgres) -> None:
    url = postgres.create_database("migrate_twice")
    errors: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate.upgrade(url)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    engine = connect(url)
    with engine.begin() as connection:
        assert migrate.pending(connection) == []
    engine.dispose()


def test_pre_and_post_are_separate_steps(postgres: Postgres) -> None:
    url = postgres.create_database("migrate_phases")
    migrate.upgrade(url, "pre")
    engine = connect(url)
    with engine.begin() as connection:
        # After `pre` the tables are there for the new code, and `post` is still to come
        assert connection.execute(text("SELECT count(*) FROM task_instance")).scalar() == 0
        assert migrate.pending(connection)
        assert all(r.startswith("post") for r in migrate.pending(connection))
    migrate.upgrade(url, "post")
    with engine.begin() as connection:
        assert migrate.pending(connection) == []
    engine.dispose()
