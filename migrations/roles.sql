-- The three database users that Millrace can make do with, for a database of its own. millrace migrate roles runs
-- this, then grants.sql, in one transaction; both may be run again. Run it as a superuser, or as the database's owner
-- with CREATEROLE.
--
-- Roles belong to the whole cluster and have passwords, so they are no migration: a user who makes tables need not be able
-- to make users. They come without a password, and can't log in by one until ALTER ROLE … PASSWORD gives them one.
DO $$
DECLARE
    name text;
    ns   text;
    t    regclass;
BEGIN
    FOREACH name IN ARRAY ARRAY['millrace_owner', 'millrace_writer', 'millrace_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I LOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN -- another database's run was faster
            END;
        END IF;
    END LOOP;
    -- Whoever gives tables to a role must be able to become it. From PostgreSQL 16 on, the user who made the role is a member
    -- of it, but can't.
    IF current_user <> 'millrace_owner' AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT millrace_owner TO %I', current_user);
    END IF;

    SELECT n.nspname INTO ns FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'logs'::regclass;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO millrace_owner, millrace_writer, millrace_reader', current_database());
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', ns);
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO millrace_owner', ns);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO millrace_writer, millrace_reader', ns);

    FOR t IN
        SELECT c.oid FROM pg_class c
        WHERE c.oid = ANY (ARRAY['logs', 'ledger', 'dead_letters', 'late_changes', 'late_times', 'late_hours', 'settings', 'last_stream', 'schema_migrations',
            'archive_fields', 'archive_ranges', 'archive_files', 'millrace_searches', 'millrace_search_changes', 'millrace_search_messages']::regclass[])
           OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent IN ('logs'::regclass, 'ledger'::regclass))
           -- detached by retention, and to be dropped by the owner
           OR c.relkind = 'r' AND obj_description(c.oid, 'pg_class') LIKE 'millrace: to be dropped, %'
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO millrace_owner', t);
    END LOOP;
    ALTER FUNCTION millrace_add_partition(regclass, text, text, text) OWNER TO millrace_owner;
    ALTER FUNCTION millrace_summarize(regclass, text[], boolean) OWNER TO millrace_owner;
    ALTER FUNCTION millrace_known_records(regclass, uuid[], timestamptz[], bytea[]) OWNER TO millrace_owner;
    ALTER FUNCTION millrace_refuse_row() OWNER TO millrace_owner;
    ALTER FUNCTION millrace_same_record(jsonb, bytea) OWNER TO millrace_owner;
END $$;
