-- The searches that watch (SEARCHES_FILE): what is known of each after its last evaluation. While a query service evaluates one, it holds the
-- advisory lock of its name, and writes all of this in one transaction.
CREATE TABLE millrace_searches (
    name          text        PRIMARY KEY,
    definition    text        NOT NULL,              -- changes when the groups become others
    every_seconds int         NOT NULL,
    receivers     text[]      NOT NULL,              -- who is told if the search leaves the file
    evaluated_at  timestamptz NOT NULL,              -- when the last evaluation was due
    succeeded_at  timestamptz,                       -- when the last one was due that found something out
    took_ms       int         NOT NULL,
    failure       text,                              -- why the last one did not
    more          boolean     NOT NULL DEFAULT false, -- there were more groups than are told apart
    state         jsonb       NOT NULL
);

-- What fired and was resolved.
CREATE TABLE millrace_search_changes (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    search  text        NOT NULL,
    at      timestamptz NOT NULL,
    what    text        NOT NULL CHECK (what IN ('fired', 'resolved')),
    since   timestamptz NOT NULL, -- when the condition began to hold
    "group" jsonb       NOT NULL
);
CREATE INDEX millrace_search_changes_search_idx ON millrace_search_changes (search, id DESC);
CREATE INDEX millrace_search_changes_at_idx ON millrace_search_changes (at);

-- What is to be told. Of one search to one place it is told in the order of the ids.
CREATE TABLE millrace_search_messages (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message    uuid        NOT NULL DEFAULT gen_random_uuid(),
    search     text        NOT NULL,
    receiver   text        NOT NULL,
    target     int         NOT NULL,  -- which of the receiver's URLs
    repeats    boolean     NOT NULL,  -- nothing has changed: Alertmanager wants to hear again of what fires
    content    jsonb,                 -- null when nobody needs it any more
    state      text        NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'given up')),
    created_at timestamptz NOT NULL DEFAULT now(),
    state_at   timestamptz NOT NULL DEFAULT now(),
    tries      int         NOT NULL DEFAULT 0,
    next_try   timestamptz NOT NULL DEFAULT now(),
    failure    text                   -- of the last try
);
CREATE INDEX millrace_search_messages_waiting_idx ON millrace_search_messages (search, receiver, target, id) WHERE state = 'waiting';
CREATE INDEX millrace_search_messages_state_idx ON millrace_search_messages (state_at) WHERE state <> 'waiting';
