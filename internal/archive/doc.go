// Package archive is the second copy of the records, in columns: it writes the rows of one closed range of time to Parquet files, and
// reads them.
//
// A file has the columns _id, _inserted_at and _time, a column for each path that is common in its records, and _rest. A value of a
// record lies in one place: in the column of its path if it is of the column's kind and the column gives its text back letter by letter,
// else in _rest. That is JSON with those members of the record that no column has: arrays, nulls, rare fields, values of another kind.
// So the columns and _rest make up the record as PostgreSQL writes it (data::text), byte for byte, and a condition that holds when one of
// a record's values satisfies it holds when it does so in a column or in _rest.
//
// A path has one kind for good, see Registry, so that files of different times are one table to other programs.
//
// A Writer keeps one row group in memory. Each record is put together again from what is to be written, and compared, before it is
// written. Verify does so with a file that has been written. A Group reads the columns that are asked for, page by page.
//
// Nothing here starts a goroutine. A File may be used by many goroutines at once, the others by one at a time.
package archive
