-- The records. Partitions are made by the workers, ahead of time and on demand.
CREATE TABLE logs (
    id          uuid        NOT NULL, -- UUIDv7, fixed by the API before it publishes
    inserted_at timestamptz NOT NULL, -- the id's time, to the millisecond
    data        jsonb       NOT NULL
) PARTITION BY RANGE (inserted_at);

-- The only index of the open partition. A record is found by its id through the time that the id begins with.
CREATE INDEX logs_inserted_at_idx ON logs (inserted_at);

-- The segments that have been stored. An id's first bits are its time, so ranges of ids are ranges of time.
CREATE TABLE ledger (
    id       uuid   PRIMARY KEY, -- base id of the segment
    records  int    NOT NULL,    -- how many records it has
    checksum bigint NOT NULL     -- XXH64 of its records, to tell a retry from a key used twice
) PARTITION BY RANGE (id);

-- What could not be stored.
CREATE TABLE dead_letters (
    id           uuid        PRIMARY KEY,
    dead_at      timestamptz NOT NULL DEFAULT now(),
    reason       text        NOT NULL, -- a class such as data, undecodable, delivery_limit
    error        text        NOT NULL, -- what the server or the decoder said
    payload      bytea       NOT NULL, -- the record, or the whole body of the message
    record_id    uuid,                 -- the id the record would have had; null when the payload is a message
    queue        text        NOT NULL, -- where it came from
    properties   jsonb       NOT NULL  -- the message's type, content type, id and headers
);
CREATE INDEX dead_letters_dead_at_idx ON dead_letters (dead_at);

-- Hours of inserted_at in which rows appeared or vanished when they were no longer new, and in how many
-- transactions. A cached result of a closed window is good only for the sum over its hours. Transactions that
-- run at once count in different slots, so that they don't wait for each other.
CREATE TABLE late_changes (
    hour    timestamptz NOT NULL,
    slot    int         NOT NULL DEFAULT pg_backend_pid() % 32,
    changes bigint      NOT NULL DEFAULT 1,
    PRIMARY KEY (hour, slot)
);
