-- A long SELECT holds up the lock that this takes, and everything else waits behind it. So it gives up, and workers try again.
SET LOCAL lock_timeout = '5s';

-- When the event of a record happened, as far as the record tells; else its inserted_at. Workers of before this step do not write
-- it, and rows of before do not have it: 1970 stands for their inserted_at, and no record has such a time of its own. The default is a
-- constant, so no partition is written anew.
ALTER TABLE logs ADD COLUMN time timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00';

-- Which partitions have rows whose time is more than an hour from their inserted_at, and in which hours that time is. So a search of
-- a window by time reads what came within an hour of the window, and the partitions that are noted for it here, and nothing else. A
-- row here may be left over from records that were not stored.
CREATE TABLE late_hours (
    hour    timestamptz NOT NULL, -- of time
    from_at timestamptz NOT NULL, -- the partition's range
    to_at   timestamptz NOT NULL,
    PRIMARY KEY (hour, from_at)
);

-- Hours of time in which rows appeared or vanished when they were no longer new, as late_changes has the hours of inserted_at.
-- The hour '-infinity' stands for so many hours that they are not noted one by one: all windows count it.
CREATE TABLE late_times (
    hour    timestamptz NOT NULL,
    slot    int         NOT NULL DEFAULT pg_backend_pid() % 32,
    changes bigint      NOT NULL DEFAULT 1,
    PRIMARY KEY (hour, slot)
);

-- Partitions get indexes of their own. With an index of the table they would have to have that one, too.
CREATE OR REPLACE FUNCTION millrace_add_partition(parent regclass, child text, lower_bound text, upper_bound text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
BEGIN
    SELECT c.relname, n.nspname, coalesce(' TABLESPACE ' || quote_ident(s.spcname), '') AS place, c.relreplident INTO t
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
    WHERE c.oid = parent AND c.relname IN ('logs', 'ledger') AND c.relkind = 'p'
      AND pg_has_role(c.relowner, 'USAGE'); -- of the function's owner
    IF NOT FOUND THEN
        RAISE EXCEPTION 'millrace_add_partition: % is neither logs nor ledger', parent;
    END IF;
    IF child !~ ('^' || t.relname || '_[0-9]{8}(_[0-9]{4}(_[0-9])?)?$') THEN
        RAISE EXCEPTION 'millrace_add_partition: % is not the name of a partition of %', child, t.relname;
    END IF;
    EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE INCLUDING COMPRESSION)%4$s',
        t.nspname, child, t.relname, t.place);
    IF t.relreplident = 'f' THEN
        EXECUTE format('ALTER TABLE %I.%I REPLICA IDENTITY FULL', t.nspname, child);
    END IF;
    IF t.relname = 'logs' THEN
        -- Rows lie in the order in which they came, so the first inserted_at and the last of 128 pages tell where they are. Most came
        -- within ten seconds of their time: the same index finds them by time. The others have one for themselves.
        EXECUTE format('CREATE INDEX %1$I ON %2$I.%3$I USING brin (inserted_at) WITH (pages_per_range = 128)', child || '_came_brin', t.nspname, child);
        EXECUTE format('CREATE INDEX %1$I ON %2$I.%3$I (time) WHERE time > inserted_at OR time - inserted_at < ''-10 s''::interval',
            child || '_late_idx', t.nspname, child);
    END IF;
    EXECUTE format('ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I FOR VALUES FROM (%4$L) TO (%5$L)',
        t.nspname, t.relname, child, lower_bound, upper_bound);
END $$;

-- Brings the BRIN indexes of partitions of logs up to date: pages that were written since the last time are not in them yet, and every
-- search reads those pages. Only an owner may do that, so the function runs as its own. It goes back from the last ranges of pages that
-- are full to the first one that is summarized; everything = true looks at all ranges, as it must when a call was cut short. It leaves
-- out the two last ranges, which are being written: a row that comes into a range that is summarized costs the most. It gives up where a
-- vacuum, a build or a detach is under way: a later call goes on.
CREATE FUNCTION millrace_summarize(parent regclass, children text[], everything boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    x     record;
    block bigint;
BEGIN
    FOR x IN
        SELECT i.indexrelid::regclass AS index, i.indrelid AS child,
            coalesce((SELECT option_value::bigint FROM pg_options_to_table(xc.reloptions) WHERE option_name = 'pages_per_range'), 128) AS pages
        FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent JOIN pg_class c ON c.oid = h.inhrelid
        JOIN pg_index i ON i.indrelid = c.oid JOIN pg_class xc ON xc.oid = i.indexrelid JOIN pg_am a ON a.oid = xc.relam
        WHERE h.inhparent = parent AND p.relname = 'logs' AND p.relkind = 'p' AND pg_has_role(p.relowner, 'USAGE')
          AND c.relname = ANY (children) AND a.amname = 'brin' AND i.indisvalid
    LOOP
        BEGIN
            IF everything THEN
                PERFORM brin_summarize_new_values(x.index);
                CONTINUE;
            END IF;
            block := (pg_relation_size(x.child) / current_setting('block_size')::bigint / x.pages - 3) * x.pages;
            WHILE block >= 0 LOOP
                EXIT WHEN brin_summarize_range(x.index, block) = 0;
                block := block - x.pages;
            END LOOP;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION millrace_summarize(regclass, text[], boolean) FROM PUBLIC;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'logs'::regclass) THEN
        DROP INDEX logs_inserted_at_idx;
    END IF;
END $$;
