// Package partition looks after the partitions of logs and of the ledger. It makes them before they are needed, gives them an
// index when they no longer grow, and drops them when their time is over.
//
// # The life of a partition
//
// PostgreSQL's catalog alone has a partition's state, so a leader goes on where another one has died:
//
//	open      Records are copied into it. It has no index on data: that would cut COPY to a quarter of its speed.
//	closed    Its range ended an hour ago. Few records come in from now on.
//	indexed   logs only: it has the index for searches in data, name_data_idx.
//	archived  logs only: archive_ranges has its range, and archive_files the files with its rows.
//	marked    Retention is over. The comment on the table says that it is to be dropped, and its range.
//	detached  It is a table by itself and nobody reads it. A detach that was cut short is pending until a later round.
//	dropped   It is gone. late_changes has its hours, so that no cache goes on with answers about them.
//
// Set makes the partitions that records need (create.go). Keeper makes two intervals more (ahead.go) and takes partitions from
// marked to dropped (retention.go). Indexer takes them from closed to indexed (index.go). Archiver copies them to the archive,
// indexed or not (archive.go), and open ones in slices (slice.go). A further state between indexed and marked would be a file of its own, with a lock and rounds as in
// leader.go.
//
// What people do with partitions is left alone. A partition that somebody has detached carries no mark, and is never dropped. A
// table whose name this package would not give is neither indexed nor dropped.
//
// # Goroutines
//
// The package starts none. Keeper.Run, Indexer.Run and Archiver.Run work until their context is done, each on connections of its own.
// One of all workers' keepers leads, and so do one of their indexers and one of their archivers (leader.go). Many goroutines may use a Set at once, each with a connection
// of its own.
package partition
