-- The files stay in their store. Rows that are in files alone are found no more.
DROP TABLE archive_files, archive_ranges, archive_fields;
-- With the triggers of partitions that were about to be detached.
DROP FUNCTION millrace_refuse_row() CASCADE;
DROP FUNCTION millrace_same_record(jsonb, bytea);
