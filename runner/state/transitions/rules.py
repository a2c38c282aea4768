"""The trigger rules in SQL. authoring.rules.decide says the same for one task; the tests hold one against the other."""

# Over the columns rule, w: upstream still to end, f: failed, s: skipped, ok: succeeded, setups: setup tasks of those.
DECIDE = """CASE rule
    WHEN 'always' THEN 'ready'
    WHEN 'all_success' THEN CASE WHEN f > 0 THEN 'upstream_failed' WHEN w > 0 THEN 'waiting'
                                 WHEN s > 0 THEN 'skipped' ELSE 'ready' END
    WHEN 'all_failed' THEN CASE WHEN ok + s > 0 THEN 'skipped' WHEN w = 0 THEN 'ready' ELSE 'waiting' END
    WHEN 'all_skipped' THEN CASE WHEN ok + f > 0 THEN 'skipped' WHEN w = 0 THEN 'ready' ELSE 'waiting' END
    WHEN 'all_done' THEN CASE WHEN w = 0 THEN 'ready' ELSE 'waiting' END
    WHEN 'one_success' THEN CASE WHEN ok > 0 OR ok + f + s + w = 0 THEN 'ready' WHEN w > 0 THEN 'waiting'
                                 WHEN f > 0 THEN 'upstream_failed' ELSE 'skipped' END
    WHEN 'one_failed' THEN CASE WHEN f > 0 OR ok + f + s + w = 0 THEN 'ready' WHEN w > 0 THEN 'waiting'
                                ELSE 'skipped' END
    WHEN 'one_done' THEN CASE WHEN ok + f > 0 OR ok + f + s + w = 0 THEN 'ready' WHEN w > 0 THEN 'waiting'
                              ELSE 'skipped' END
    WHEN 'none_failed' THEN CASE WHEN f > 0 THEN 'upstream_failed' WHEN w > 0 THEN 'waiting' ELSE 'ready' END
    WHEN 'none_skipped' THEN CASE WHEN s > 0 THEN 'skipped' WHEN w > 0 THEN 'waiting' ELSE 'ready' END
    WHEN 'none_failed_min_one_success' THEN CASE WHEN f > 0 THEN 'upstream_failed' WHEN w > 0 THEN 'waiting'
                                                 WHEN ok > 0 OR s = 0 THEN 'ready' ELSE 'skipped' END
    WHEN 'teardown' THEN CASE WHEN w > 0 THEN 'waiting' WHEN setups > 0 THEN 'ready' ELSE 'skipped' END
    END"""

# What a mapped task becomes as its items end: w, f, s, ok count its items.
DECIDE_MAPPED = """CASE WHEN w > 0 THEN 'expanded' WHEN f > 0 THEN 'failed' WHEN ok = 0 THEN 'skipped'
    ELSE 'success' END"""

# A task whose rule holds becomes this: a mapped one is expanded by a step of its own.
START = """CASE WHEN past_blocked OR kind = 'mapped' THEN 'waiting' WHEN kind = 'sensor' THEN 'deferred'
    ELSE 'ready' END"""

FINISHED = "('success', 'failed', 'skipped', 'upstream_failed')"
