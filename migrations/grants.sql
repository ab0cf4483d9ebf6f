-- Lets the worker and the query service do what they must, if millrace_owner owns the tables; else it changes nothing.
-- Millrace runs it after every migration, so that what a step has made is granted too.
--
-- Partitions need no grants: rows are written and read through their parents.
DO $$
BEGIN
    IF (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'logs'::regclass) <> 'millrace_owner' THEN
        RETURN;
    END IF;

    -- The worker writes, and reads what tells whether something was written before: never the records.
    GRANT INSERT, SELECT (id, inserted_at) ON logs TO millrace_writer;
    GRANT INSERT, SELECT ON ledger TO millrace_writer;
    GRANT INSERT, SELECT (id, record_id) ON dead_letters TO millrace_writer;
    GRANT SELECT ON settings, archive_ranges, archive_files TO millrace_writer;
    -- Where another user has migrated: the keeper works as the tables' owner.
    GRANT SELECT, INSERT, UPDATE ON settings TO millrace_owner;
    GRANT INSERT, SELECT, UPDATE (changes) ON late_changes, late_times TO millrace_writer;
    GRANT INSERT ON late_hours TO millrace_writer;
    GRANT INSERT, SELECT, UPDATE ON last_stream TO millrace_writer;
    GRANT SELECT ON schema_migrations TO millrace_writer;
    -- Where another user has migrated: rows are copied to the archive by the tables' owner.
    GRANT SELECT, INSERT, UPDATE, DELETE ON archive_fields, archive_ranges, archive_files TO millrace_owner;
    -- Again: a dump that is restored without privileges lets everybody call it.
    REVOKE ALL ON FUNCTION millrace_add_partition(regclass, text, text, text) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION millrace_add_partition(regclass, text, text, text) TO millrace_writer;
    REVOKE ALL ON FUNCTION millrace_summarize(regclass, text[], boolean) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION millrace_summarize(regclass, text[], boolean) TO millrace_writer;
    REVOKE ALL ON FUNCTION millrace_known_records(regclass, uuid[], timestamptz[], bytea[]) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION millrace_known_records(regclass, uuid[], timestamptz[], bytea[]) TO millrace_writer;

    -- The query service reads the records. Of dead letters it reads all but what is in them.
    GRANT SELECT ON logs, ledger, late_changes, late_times, late_hours, settings, schema_migrations TO millrace_reader;
    GRANT SELECT ON archive_fields, archive_ranges, archive_files TO millrace_reader;
    GRANT SELECT (id, dead_at, reason, record_id, queue) ON dead_letters TO millrace_reader;
    -- It keeps the state of searches that alert, and writes nothing else.
    GRANT SELECT, INSERT, UPDATE, DELETE ON millrace_searches, millrace_search_changes, millrace_search_messages TO millrace_reader;
END $$;
