// Package query is the read side of Millrace: it searches the logs in PostgreSQL and answers in JSON.
//
// What it promises:
//
//   - Every read is one READ ONLY transaction with a statement timeout. It is cancelled when its client leaves, unless the
//     answer is for the cache, which others may share: that is finished, within the timeout. A search with a budget, and a sample,
//     may take several transactions.
//
//   - A search with a budget answers within it, and says how far it came.
//
//   - The pages of a search hold every row that was there when the first page was read, and none twice, even among rows of
//     the same millisecond. Pages are cut by (inserted_at, id), and the cursor holds the window in milliseconds.
//
//   - Memory is bounded, by the number of requests at once and by the bytes of a page (limits in server.go and rows.go).
//     Beyond the bound a request gets 429 at once.
//
//   - With an archive each row is in an answer once, from the table or from a file, whatever the worker moves meanwhile. A file that can't be
//     read costs the requests that need it.
//
//   - The cache is never wrong and never needed. It keeps only answers about a closed window. The key of an answer holds how
//     many times rows appeared or vanished late in the window's hours. A Redis that is absent, slow or dying costs time, but no
//     answer.
//
//   - A parameter that can't be taken is refused with 400, its name, what it got and what it takes. In q the refusal also
//     tells the place.
//
//   - The tail gives every follower each row once when it becomes visible, however late it commits. Or it tells how many rows
//     the follower was too slow for. A slow follower slows nobody.
//
//   - An export is the whole window, or its connection is cut.
//
// The way of a request is the order of the files: server.go with cors.go (who may ask), params.go with times.go and
// cursor.go (what is asked; the package language reads q), cache.go, then the endpoint: logs.go, context.go, histogram.go with buckets.go,
// stats.go, patterns.go, fields.go with sample.go, sql.go, export.go, follow.go. They read rows through source.go, which puts together what the table has (rows.go) and what files of the archive
// have (archive.go, the package columns), and through budget.go and store.go. The package tail gives rows to followers.
// failure.go makes answers of errors.
//
// Goroutines: Run starts one that watches the database, one that watches the keys, and the tail's reader. cache.share starts
// one for each request that waits for a shared answer, and getExport one that watches its key. Run waits for all of them,
// after the last request has been answered.
package query
