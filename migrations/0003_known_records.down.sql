DROP FUNCTION millrace_known_records(regclass, uuid[], timestamptz[], bytea[]);
DROP INDEX dead_letters_record_id_idx;
DROP TABLE settings;
