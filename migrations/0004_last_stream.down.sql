DROP TABLE last_stream;
