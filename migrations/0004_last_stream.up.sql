-- How far the stream has been read that takes what expires or overflows in RabbitMQ; a row for each stream, by its name. A
-- stream keeps what was read, so the place is written in the transaction that stores the dead letters.
CREATE TABLE last_stream (
    name    text PRIMARY KEY,
    first   uuid,                        -- digest of the message at offset 0: another one is another stream
    next    bigint NOT NULL DEFAULT 0,   -- offset of the message to be read next
    skipped bigint NOT NULL DEFAULT 0    -- messages that no reader survived
);
