-- Makes a partition, for a worker whose database user owns none of the tables: only the owner of logs may attach to
-- it. So the function runs as its owner, and takes nothing but logs, ledger and names of their partitions.
--
-- The table is created by itself and then attached: CREATE TABLE … PARTITION OF takes a lock on the parent that
-- waits behind every SELECT under way, and every COPY behind it. ATTACH takes one that goes with both. It checks
-- the table's rows against the bounds, of which an empty table has none, so no CHECK constraint is needed to
-- spare it the scan. Indexes come with ATTACH.
CREATE FUNCTION millrace_add_partition(parent regclass, child text, lower_bound text, upper_bound text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
BEGIN
    SELECT c.relname, n.nspname INTO t FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = parent AND c.relname IN ('logs', 'ledger') AND c.relkind = 'p'
      AND pg_has_role(c.relowner, 'USAGE'); -- of the function's owner
    IF NOT FOUND THEN
        RAISE EXCEPTION 'millrace_add_partition: % is neither logs nor ledger', parent;
    END IF;
    IF child !~ ('^' || t.relname || '_[0-9]{8}(_[0-9]{4}(_[0-9])?)?$') THEN
        RAISE EXCEPTION 'millrace_add_partition: % is not the name of a partition of %', child, t.relname;
    END IF;
    EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION)',
        t.nspname, child, t.relname);
    EXECUTE format('ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I FOR VALUES FROM (%4$L) TO (%5$L)',
        t.nspname, t.relname, child, lower_bound, upper_bound);
END $$;
REVOKE ALL ON FUNCTION millrace_add_partition(regclass, text, text, text) FROM PUBLIC;
