-- The times are lost that way, and no record: each has in its data what its time was found in. The index is built on every partition
-- while nothing else can use the table.
DROP FUNCTION millrace_summarize(regclass, text[], boolean);
DROP TABLE late_hours, late_times;
ALTER TABLE logs DROP COLUMN time;
CREATE INDEX IF NOT EXISTS logs_inserted_at_idx ON logs (inserted_at);

-- As step 5 makes it.
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
    EXECUTE format('ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I FOR VALUES FROM (%4$L) TO (%5$L)',
        t.nspname, t.relname, child, lower_bound, upper_bound);
END $$;
