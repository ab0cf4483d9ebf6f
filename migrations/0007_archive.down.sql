-- The files stay in their store. Rows that are in files alone are found no more.
DROP TABLE archive_files, archive_ranges, archive_fields;
