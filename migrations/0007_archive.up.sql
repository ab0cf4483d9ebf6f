-- The archive: files in columns, which have copies of the rows of closed ranges of inserted_at. What is in no row here does not exist,
-- whatever lies in the store.

-- The kind of each column, for good: the same path is of the same kind in all files.
CREATE TABLE archive_fields (
    name text PRIMARY KEY,
    kind text NOT NULL
);

-- The ranges whose rows are all in files, as far as they were there when they were copied. changes is the sum of late_changes over the
-- range's hours at that moment: while it is that sum still, the files have the range's rows, all of them and no others. Else rows have
-- come or gone since. Then the table logs has the answer until the range is copied again. If files_only is true, logs has at most the
-- rows that came later, and the answer is what the files and logs have together, each id once.
CREATE TABLE archive_ranges (
    from_at      timestamptz PRIMARY KEY,
    to_at        timestamptz NOT NULL CHECK (from_at < to_at),
    generation   int         NOT NULL,
    changes      bigint      NOT NULL,
    files_only   boolean     NOT NULL DEFAULT false, -- retention drops the rows, or has dropped them
    kept_until   timestamptz NOT NULL DEFAULT '-infinity', -- retention leaves the rows until then: somebody has restored them
    published_at timestamptz NOT NULL DEFAULT now()
);

-- The files. A file is noted before it is begun, so that none is left behind: one that is still being written a day later was
-- given up. Searches read those that are published. Superseded ones are deleted when the searches of before have ended.
CREATE TABLE archive_files (
    name       text        PRIMARY KEY, -- in the store
    from_at    timestamptz NOT NULL,    -- of the range
    to_at      timestamptz NOT NULL,
    generation int         NOT NULL,    -- of the range
    state      text        NOT NULL DEFAULT 'writing' CHECK (state IN ('writing', 'published', 'superseded')),
    state_at   timestamptz NOT NULL DEFAULT now(),
    rows       bigint,
    bytes      bigint,
    tail_bytes bigint,                  -- at the file's end: all that has to be read to open it
    first_id   uuid,
    last_id    uuid,
    first_at   timestamptz,             -- inserted_at
    last_at    timestamptz,
    first_time timestamptz,             -- time, or inserted_at of rows without
    last_time  timestamptz,
    CHECK (state = 'writing' OR last_time IS NOT NULL)
);
CREATE INDEX archive_files_came_idx ON archive_files USING gist (tstzrange(first_at, last_at, '[]')) WHERE state = 'published';
CREATE INDEX archive_files_time_idx ON archive_files USING gist (tstzrange(first_time, last_time, '[]')) WHERE state = 'published';
CREATE INDEX archive_files_range_idx ON archive_files (from_at);
CREATE INDEX archive_files_left_idx ON archive_files (state_at) WHERE state <> 'published';

-- Refuses rows for a partition that is about to be detached: they would go with it. The error is the one of a row that no partition takes.
CREATE FUNCTION millrace_refuse_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the partition % takes no more rows, it is about to be detached', TG_TABLE_NAME
        USING ERRCODE = 'check_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
END $$;

-- Reports whether a record is the one that PostgreSQL has as jsonb. What is no jsonb is equal to none.
CREATE FUNCTION millrace_same_record(stored jsonb, record bytea) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN stored = convert_from(record, 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;
