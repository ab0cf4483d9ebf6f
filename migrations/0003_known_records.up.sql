-- What workers and commands must agree on, whichever machine they run on.
--   retention         RETENTION of the worker that drops partitions, such as 720h0m0s; 0s keeps all
--   ledger_forgotten  the time up to which the ledger may have forgotten segments, in RFC 3339
CREATE TABLE settings (
    name       text        PRIMARY KEY,
    value      text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
-- Until now the ledger forgot by the clock, after 7 to 8 days; a day is for clocks that differ.
INSERT INTO settings (name, value)
SELECT 'ledger_forgotten', to_char(now() AT TIME ZONE 'UTC' - interval '6 days', 'YYYY-MM-DD"T"HH24:MI:SS"Z"');

-- Dead letters of records are looked for by the ids that the records would have had.
CREATE INDEX dead_letters_record_id_idx ON dead_letters (record_id);

-- Tells for each record whether its id is taken, in logs and among the dead letters: true by an equal record, false by other
-- records only, NULL by none. The worker asks when the ledger may have forgotten a segment. That is rare, so one query for each
-- record is cheap enough, and every kind of table takes it. The worker's database user may not read records. So the function
-- runs as the owner of logs, and answers nothing else.
CREATE FUNCTION millrace_known_records(parent regclass, ids uuid[], times timestamptz[], records bytea[])
RETURNS TABLE (place int, in_logs boolean, in_letters boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ns      text;
    content jsonb;
BEGIN
    SELECT n.nspname INTO ns FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = parent AND c.relname = 'logs' AND c.relkind = 'p'
      AND pg_has_role(c.relowner, 'USAGE'); -- of the function's owner
    IF NOT FOUND THEN
        RAISE EXCEPTION 'millrace_known_records: % is not logs', parent;
    END IF;
    FOR i IN 1 .. cardinality(ids) LOOP
        place := i;
        BEGIN
            content := convert_from(records[i], 'UTF8')::jsonb;
        EXCEPTION WHEN OTHERS THEN
            content := NULL; -- such a record is in no row
        END;
        EXECUTE format('SELECT bool_or(coalesce(data = $3, false)) FROM %I.logs WHERE inserted_at = $2 AND id = $1', ns)
            INTO in_logs USING ids[i], times[i], content;
        EXECUTE format('SELECT bool_or(payload = $2) FROM %I.dead_letters WHERE record_id = $1', ns)
            INTO in_letters USING ids[i], records[i];
        RETURN NEXT;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION millrace_known_records(regclass, uuid[], timestamptz[], bytea[]) FROM PUBLIC;
