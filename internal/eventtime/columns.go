package eventtime

// NoTimeSQL is the column time, as SQL, of rows that have no time of their own: those of before the column was there, and those that were
// inserted without it.
const NoTimeSQL = "'1970-01-01 00:00:00+00'"

// LateSQL is the condition on the columns of logs that holds for rows which did not come within ten seconds of their time. Partitions
// have an index on time for these rows alone, which the function millrace_add_partition makes with the same condition.
const LateSQL = "(time > inserted_at OR time - inserted_at < '-10 s'::interval)"
